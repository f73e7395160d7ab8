"""Describes errors of the operating system in one line with path and reason.

    OSError -> "runs/x/metrics.jsonl: the disk is full"

Libraries wrap such errors in exceptions of their own (tensorstore: ValueError, JAX: RuntimeError);
`unwrapped` turns them back where their calls are made.
"""

import contextlib
import errno
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mllm_jax.common.errors import ConfigError, RunError, notes

KINDS = (OSError, MemoryError, RecursionError, RuntimeError)  # what `described` may know
CLOSED = 141  # as a shell counts a process that SIGPIPE ended
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}
# errors that only another path or other permissions fix: bad input, wherever they occur
_PATHS = {
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EROFS,
}
_NUMBER = re.compile(r"\[(?:OS error|Errno) (\d+)[:\]]")
_TEXTS = {os.strerror(number): number for number in (*_REASONS, errno.EIO, errno.EACCES)}


class Failure(NamedTuple):
    """How a command ends: exit code and message; no message if nobody would read it."""

    code: int
    line: str | None


def reason(error: OSError) -> str:
    """Why, in a few words."""
    known = _REASONS.get(error.errno or 0)
    return known or error.strerror or str(error) or type(error).__name__


def described(error: BaseException) -> Failure | None:
    """How a command ends after an error of the machine; None for a bug in mllm-jax."""
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return Failure(CLOSED, None)
    line, code = None, RunError.exit_code
    if isinstance(error, OSError):
        code = ConfigError.exit_code if error.errno in _PATHS else code
        path = error.filename
        name = os.fsdecode(path) if isinstance(path, bytes) else path
        line = f"{name}: {reason(error)}" if name is not None else reason(error)
    elif isinstance(error, MemoryError):
        line = f"out of memory{_in_brackets(error)}"
    elif isinstance(error, RecursionError):
        line = f"nested too deeply{_in_brackets(error)}"
    elif out_of_memory(error):
        line = f"out of device memory ({error}); `mllm-jax preflight` says what fills it"
    if line is None:
        return None
    return Failure(code, "; ".join([line, *notes(error)]))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory is full, or a program would need more than it has."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    return "RESOURCE_EXHAUSTED" in text and "out of memory" in text.lower()


def _in_brackets(error: BaseException) -> str:
    return f" ({error})" if str(error) else ""


def _reader_is_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


# ------------------------------------------------------------------------- where errors are raised


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Wraps writes to an open file: adds the file's name to an OSError without one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # else its text would be lost
            error.filename = str(path)
        raise


@contextlib.contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Wraps the first access to an output, before the work: its OSErrors are bad input.

    Raises:
        ConfigError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def unwrapped(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Wraps calls of a library: turns its own exceptions back into the OSError that caused them.

    Args:
        path: named where the library's error has none.
        kinds: of the library's exceptions; those without an error of the system inside stay.
    """
    try:
        with naming(path):
            yield
    except kinds as error:
        if isinstance(error, OSError):
            raise
        number = system_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def system_error(error: BaseException | None) -> int | None:
    """The errno inside an exception: its own, that of its cause, or the one its text names."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if named := _NUMBER.search(str(error)):
            return int(named[1])
        for text, number in _TEXTS.items():
            if text in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


# ---------------------------------------------------------------------------------- standard output


def open_standard() -> None:
    """Makes standard output and error fit for every text; opens those that are closed.

    A file opened later would take the number of a closed one, and get what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # letters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_standard() -> Failure | None:
    """Flushes standard output; how the command ends if that fails.

    The interpreter would try again at its end, so what is left goes nowhere.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        return standard_failed(error)
    return None


def standard_failed(error: OSError) -> Failure | None:
    """How a command ends that could not print; what it prints afterwards goes nowhere."""
    if error.filename is None:
        error.filename = "standard output"
    failure = described(error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return failure
