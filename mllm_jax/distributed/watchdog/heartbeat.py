"""Reports the training process's heartbeats and final error to its watchdog, as lines of JSON."""

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
INSIDE = "MLLM_JAX_GUARD"  # set in a training process: file descriptor of its end of the socket


def interval(lost_after: float) -> float:
    """Seconds between two heartbeats."""
    return min(1.0, lost_after / 10)


_wait: tuple[str, float] | None = None  # what the main thread waits for, and since when


@contextlib.contextmanager
def waits_for(what: str) -> Iterator[None]:
    """Names what the main thread blocks on and may block on for ever: "the end of step 7".

    The watchdogs abort a run in which all processes have waited for too long, and report for what.
    Do not wrap what may rightly take long, such as a compilation.
    """
    global _wait
    before, _wait = _wait, (what, time.monotonic())
    try:
        yield
    finally:
        _wait = before


def waited_for() -> str | None:
    """What the main thread waits for now; None if nothing."""
    return _wait and _wait[0]


class Connection:
    """A socket that carries lines of JSON."""

    def __init__(self, connection: socket.socket):
        self.socket, self.closed, self._rest = connection, False, b""

    def send(self, **fields: Any) -> None:
        """Sends one line; sets `closed` if nobody receives."""
        try:
            self.socket.sendall(json.dumps(fields).encode() + b"\n")
        except OSError:
            self.closed = True

    def read(self) -> list[dict[str, Any]]:
        """The messages received; waits only if there is nothing to read."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        self.closed = self.closed or not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:  # another program connected
            self.closed = True
            return []


class Heartbeat:
    """Sends heartbeats from a thread of its own, and the error with which the process ends."""

    def __init__(self, descriptor: int, lost_after: float):
        """Starts the thread, which ends this process when the watchdog is gone.

        On SIGUSR1 from the watchdog, prints every thread's stack.
        """
        self._connection = Connection(socket.socket(fileno=descriptor))
        self._every = interval(lost_after)
        sys.excepthook = self._fail
        faulthandler.register(STACKS)
        threading.Thread(target=self._send, name="heartbeat", daemon=True).start()

    def _send(self) -> None:
        while not self._connection.closed:
            wait = _wait
            self._connection.send(waits=wait and (wait[0], time.monotonic() - wait[1]))
            if select.select([self._connection.socket], [], [], self._every)[0]:
                self._connection.read()  # the watchdog never writes: it has ended
        os._exit(LOST)  # the main thread may hang in a collective

    def _fail(self, kind: Any, error: Any, trace: Any) -> None:
        sys.__excepthook__(kind, error, trace)
        self.end(1, None)

    def finish(self) -> None:
        """Reports that the work is done: while the interpreter ends, no thread sends heartbeats."""
        global _wait
        _wait = "the others, at the end", time.monotonic()  # in JAX's exit handler
        self._connection.send(ending=True)

    def leave(self, code: int, line: str | None) -> NoReturn:
        """Ends this process; an interrupt is printed here, since only this process got it."""
        if code == INTERRUPTED:
            say(line or "", code)
            line = None
        self.end(code, line)

    def end(self, code: int, error: str | None) -> NoReturn:
        """Reports an error and ends this process at once: JAX would wait for the others."""
        self._connection.send(error=error and one_line(error), ending=True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a closed pipe: nobody reads it
                stream.flush()
        os._exit(code)
