"""Says in a compiled program how often a loop of data-dependent length runs at most."""

import contextlib
import re

import jax

_BOUND = re.compile(r"\bat_most_(\d+)_turns\b")


def at_most(turns: int) -> contextlib.AbstractContextManager[object]:
    """A scope for a loop whose length is a value of the program: `bound` reads the number there."""
    return jax.named_scope(f"at_most_{turns}_turns")


def bound(op_name: str) -> int | None:
    """The number of turns that `at_most` gave the loop of this name; None if there is none.

    Args:
        op_name: of a compiled program's operation: the scopes around it, the innermost last.
    """
    scopes = op_name.split("/")
    if len(scopes) < 2 or scopes[-1] != "while":
        return None
    match = _BOUND.fullmatch(scopes[-2])
    return int(match[1]) if match else None
