"""Defines the errors that end a command, their exit codes, and how values are printed in them."""

import contextlib
import difflib
import reprlib
import sys
from collections.abc import Iterable
from typing import Any

LINE = 400  # characters of a line on standard error: what a terminal shows in a few rows

PREEMPTED = 75  # EX_TEMPFAIL: stopped by SIGTERM, after a save or before the first step
INTERRUPTED = 130  # Ctrl-C, as shells count it
LOST = 76  # another process of the run was lost, or all were stuck


class ConfigError(ValueError):
    """Bad input from a person; the message is one line: field, value and what is allowed."""

    exit_code = 2


class RunError(RuntimeError):
    """Aborts a run after it started; one line: what failed, where, which result is usable."""

    exit_code = 1


class Preempted(RunError):
    """The run was told to stop, and stopped at a point from which it can resume."""

    exit_code = PREEMPTED


class Interrupted(RunError):
    """Ctrl-C, raised at a safe point."""

    exit_code = INTERRUPTED

    def __init__(self):
        super().__init__("interrupted")


def notes(error: BaseException) -> list[str]:
    """Other failures that were attached to an error while it was handled."""
    return getattr(error, "__notes__", [])


def last_line(message: str, code: int = 1) -> str:
    """The error message that ends a command, with its prefix."""
    mark = "mllm-jax: " if code == INTERRUPTED else "mllm-jax: error: "
    return f"{mark}{one_line(message, LINE - len(mark))}\n"


def say(message: str, code: int = 1) -> None:
    """Prints the error message that ends the run."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a closed pipe: nobody reads it
            print(last_line(message, code), end="", file=sys.stderr, flush=True)


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def closest(name: Any, names: Iterable[str]) -> str | None:
    """The one of `names` that a misspelt one probably means; None if none is similar."""
    return next(iter(difflib.get_close_matches(str(name)[:80], list(names), n=1)), None)


def quoted(value: Any, limit: int = 120) -> str:
    """`value` as a message prints it: its repr, cut to `limit` characters.

    Bounded work whatever the value: texts of megabytes, lists that hold one another many times
    over, integers that Python refuses to write. Control characters are escaped.
    """
    return cut(_Short(limit).repr(value), limit)


def one_line(text: str, limit: int = LINE) -> str:
    """A message on one line: line breaks become spaces, control characters are escaped.

    A longer one loses its middle, since the start names the place and the end the remedy.
    """
    flat = " ".join(text[: 4 * limit].split()) if len(text) <= 4 * limit else text
    if len(text) > 4 * limit:
        half = 2 * limit
        flat = f"{' '.join(text[:half].split())} ... {' '.join(text[-half:].split())}"
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in flat)
    return cut(escaped, limit)


def cut(text: str, limit: int) -> str:
    """`text` without its middle, if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = (limit - 5) // 4
    return f"{text[: limit - 5 - tail]} ... {text[-tail:]}"


class _Short(reprlib.Repr):
    """reprlib's bounded repr, for the types whose own repr is not bounded as well."""

    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = limit
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 8

    def repr_str(self, x: str, level: int) -> str:
        return repr(cut(x, self.maxstring))

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r} ..."

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits <= 256 else f"an integer of {bits} bits"
