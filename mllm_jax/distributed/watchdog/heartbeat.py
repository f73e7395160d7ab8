"""The trainer's side of the guard: lines of JSON over sockets, signs of life, last words."""

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from mllm_jax.common.errors import INTERRUPTED, LOST, one_line, say

STACKS = signal.SIGUSR1
INSIDE = "MLLM_JAX_GUARD"  # set in a trainer: the file descriptor of its end of the socket pair


def interval(lost_after: float) -> float:
    """Seconds between two signs of life."""
    return min(1.0, lost_after / 10)


_wait: tuple[str, float] | None = None  # what the main thread waits for, and since when


@contextlib.contextmanager
def waits_for(what: str) -> Iterator[None]:
    """Around what may never come, such as "the end of step 7".

    The guards end a run in which all processes have waited for too long, and say for what. What
    takes long without a fault, such as a compilation, stays outside.
    """
    global _wait
    before, _wait = _wait, (what, time.monotonic())
    try:
        yield
    finally:
        _wait = before


def waited_for() -> str | None:
    """What the main thread waits for now."""
    return _wait and _wait[0]


class Line:
    """A socket that carries lines of JSON."""

    def __init__(self, it: socket.socket):
        self.socket, self.closed, self._rest = it, False, b""

    def send(self, **words: Any) -> None:
        """Sends one line; what is closed is noted in `closed`."""
        try:
            self.socket.sendall(json.dumps(words).encode() + b"\n")
        except OSError:
            self.closed = True

    def read(self) -> list[dict[str, Any]]:
        """The lines that have come; waits only if there is nothing to read."""
        try:
            found = self.socket.recv(65536)
        except OSError:
            found = b""
        self.closed = self.closed or not found
        *lines, self._rest = (self._rest + found).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:  # none of ours
            self.closed = True
            return []


class Trainer:
    """A trainer's end of the socket pair: beats, and hands over its last line."""

    def __init__(self, descriptor: int, lost_after: float):
        """Starts to beat; a guard that is gone takes its trainer along.

        SIGUSR1 of the guard prints what every thread is doing.
        """
        self._line = Line(socket.socket(fileno=descriptor))
        self._every = interval(lost_after)
        sys.excepthook = self._fail
        faulthandler.register(STACKS)
        threading.Thread(target=self._beat, name="guard", daemon=True).start()

    def _beat(self) -> None:
        while not self._line.closed:
            wait = _wait
            self._line.send(waits=wait and (wait[0], time.monotonic() - wait[1]))
            if select.select([self._line.socket], [], [], self._every)[0]:
                self._line.read()  # the guard says nothing: this is its end
        os._exit(LOST)  # the main thread may hang in a collective

    def _fail(self, kind: Any, error: Any, trace: Any) -> None:
        sys.__excepthook__(kind, error, trace)
        self.end(1, None)

    def leave(self, code: int, line: str | None) -> NoReturn:
        """Ends this process with a line of its own: an interrupt is of the one that got it."""
        if code == INTERRUPTED:
            say(line or "", code)
            line = None
        self.end(code, line)

    def end(self, code: int, error: str | None) -> NoReturn:
        """Ends this process at once: JAX would wait for the others."""
        self._line.send(error=error and one_line(error))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a closed pipe: nobody reads it
                stream.flush()
        os._exit(code)
