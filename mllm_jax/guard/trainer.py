"""The trainer's side of the guard: lines of JSON over sockets, signs of life, last words."""

import json
import os
import select
import socket
import sys
import threading
from typing import Any

from mllm_jax.errors import LOST

INSIDE = "MLLM_JAX_GUARD"  # set in a trainer: the file descriptor of its end of the socket pair


def interval(lost_after: float) -> float:
    """Seconds between two signs of life."""
    return min(1.0, lost_after / 10)


def say(message: str) -> None:
    """The one line of an end."""
    print(f"mllm-jax: error: {message}", file=sys.stderr, flush=True)


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
        """Starts to beat; a guard that is gone takes its trainer along."""
        self._line = Line(socket.socket(fileno=descriptor))
        self._every = interval(lost_after)
        sys.excepthook = self._fail
        threading.Thread(target=self._beat, name="guard", daemon=True).start()

    def _beat(self) -> None:
        while not self._line.closed:
            self._line.send(beat=True)
            if select.select([self._line.socket], [], [], self._every)[0]:
                self._line.read()  # the guard says nothing: this is its end
        os._exit(LOST)  # the main thread may hang in a collective

    def _fail(self, kind: Any, error: Any, trace: Any) -> None:
        sys.__excepthook__(kind, error, trace)
        self.end(1, None)

    def end(self, code: int, error: str | None) -> None:
        """Ends this process at once: JAX would wait for the others."""
        self._line.send(error=error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
