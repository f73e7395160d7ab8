"""Benchmarks: what is asked, how an answer is judged, which numbers a paper prints."""
