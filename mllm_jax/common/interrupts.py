"""Turns SIGINT and SIGTERM into a flag that long loops check, with a deadline.

A handler that raises may do so inside a callback of JAX or of C code, where the exception is lost.
So the handler only notes the signal:

    signal -> flag -> `check()` at the next safe point raises Interrupted or Preempted
           -> a thread that waits GRACE seconds, then removes half-written files, ends the worker
              processes, prints the message and exits, whatever the main thread is doing, such as
              compiling. A second Ctrl-C does so at once.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mllm_jax.common.errors import PREEMPTED, Interrupted, Preempted, last_line

GRACE = 10.0  # seconds between a signal and the end; safe points are closer where nothing compiles
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_asked: set[int] = set()
_held = 0  # how many hold SIGTERM back
_advice = "start the same command again"
_undo: list[Callable[[], Any]] = []


def came(number: int) -> bool:
    """Whether SIGINT or SIGTERM came; only inside `watched`."""
    return number in _asked


def check() -> None:
    """A safe point: ends the command here if it was told to end.

    Raises:
        Interrupted: Ctrl-C.
        Preempted: SIGTERM, unless `held` back.
    """
    if not _asked:
        return
    if signal.SIGINT in _asked:
        raise Interrupted()
    if not _held:
        raise Preempted(_terminated())


@contextlib.contextmanager
def held() -> Iterator[None]:
    """SIGTERM does not end the command inside: what runs there asks for it and saves first."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Sets what the message after SIGTERM recommends: "continue with --resume"."""
    global _advice
    before, _advice = _advice, advice
    try:
        yield
    finally:
        _advice = before


@contextlib.contextmanager
def undoing(undo: Callable[[], Any]) -> Iterator[None]:
    """Calls `undo` if the command must end in the middle of the block."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


@contextlib.contextmanager
def watched(leave: Callable[[int, str], NoReturn] | None = None) -> Iterator[None]:
    """Catches the signals of a command; does nothing outside the main thread.

    SIGINT that the parent has set to be ignored, as a shell does for a job in the background of a
    script, stays ignored.

    Args:
        leave: prints a line and ends the process with a code, instead of the default.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    numbers = [n for n in _SIGNALS if not (ignored and n == signal.SIGINT)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, _note) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # see `blocked`
    thread = threading.Thread(target=_watch, args=(reader, leave or _leave), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # its end
        thread.join()
        os.close(reader)
        _asked.clear()


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Wraps the start of a process, which gets signals when it has reached `watched`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignores signals once the work is done: ending the process now would look like a failure."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    kill_children()


def kill_children() -> None:
    """Kills the remaining worker processes."""
    for child in multiprocessing.active_children():
        child.kill()


def _note(number: int, frame: Any) -> None:
    _asked.add(number)


def _watch(reader: int, leave: Callable[[int, str], NoReturn]) -> None:
    """Notices a signal at once, also while the main thread is in C code."""
    interrupted, deadline = False, float("inf")
    while True:
        left = min(max(deadline - time.monotonic(), 0.05), 1.0)
        if select.select([reader], [], [], left if deadline < float("inf") else None)[0]:
            numbers = os.read(reader, 64)
            if not numbers:
                return
            for number in set(numbers) & set(_SIGNALS):
                _asked.add(number)
                deadline = min(deadline, time.monotonic() + GRACE)
            if interrupted and signal.SIGINT in numbers:
                _end(130, leave)
            interrupted = interrupted or signal.SIGINT in numbers
        if _held and not interrupted and deadline < float("inf"):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            _end(130 if interrupted else PREEMPTED, leave)


def _end(code: int, leave: Callable[[int, str], NoReturn]) -> NoReturn:
    kill_children()
    for undo in reversed(_undo):
        with contextlib.suppress(OSError):  # the next start clears what is left
            undo()
    leave(code, str(Interrupted()) if code == 130 else _terminated())


def _leave(code: int, line: str) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, last_line(line, code).encode())  # past Python's lock on standard error
    os._exit(code)


def _terminated() -> str:
    return f"SIGTERM: nothing is lost; {_advice}"
