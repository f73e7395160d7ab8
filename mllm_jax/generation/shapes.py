"""Rounds sizes up to few, so that few programs are compiled and little of them is padding."""

STEPS = 16  # lengths between a power of two and the next


def bucket(length: int, least: int = 64) -> int:
    """The next of 64, 68, 72 ... 128, 136 ... 256, 272 ...: at most a sixteenth is padding.

    Padding costs as much as text, in every batch; a program is compiled once, and kept on disk
    (`common.compilation_cache`).
    """
    size = max(length, least)
    step = max(1, (1 << ((size - 1).bit_length() - 1)) // STEPS)
    return -(-size // step) * step


def power(count: int, least: int = 1) -> int:
    """The next power of two."""
    return 1 << (max(count, least) - 1).bit_length()


def multiple(count: int, of: int) -> int:
    """The next multiple."""
    return -(-count // of) * of
