"""Imports for the package what a library would load beside what is asked of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(module: str) -> Iterator[None]:
    """What is imported in this block finds no `module`, unless that is loaded already."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # pyright: ignore[reportArgumentType] (Python's own mark)
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]
