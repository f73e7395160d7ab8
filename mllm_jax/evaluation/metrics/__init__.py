"""Scores as pure functions, one file per family, each after the published definition it names."""
