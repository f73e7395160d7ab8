"""Attention backends: one file each, behind the protocol of `protocol`, chosen by `select`."""
