"""Starts the training process and watches it: what leader and follower watchdogs share."""

import contextlib
import os
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from mllm_jax.common import interrupts
from mllm_jax.common.errors import say
from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.heartbeat import INSIDE, STACKS, Connection
from mllm_jax.distributed.watchdog.verdict import Member, Verdict

POLL = 0.1  # seconds between two checks
LATER = 2.0  # seconds after Ctrl-C in which the training process must have ended, or is sent it


class Watchdog:
    """Watches one training process; `Leader` and `Follower` exchange status with the others."""

    def __init__(self, cluster: Cluster):
        self.cluster, self.timeouts = cluster, cluster.timeouts
        self.selector = selectors.DefaultSelector()
        now = time.monotonic()
        self.me = Member(socket.gethostname(), now, now)

    def gather(self) -> None:
        """Waits until all processes have joined."""
        raise NotImplementedError

    def update(self, now: float) -> Verdict | None:
        """Exchanges status; returns the verdict, if there is one."""
        raise NotImplementedError

    def finished(self) -> bool:
        """Whether this watchdog may exit, now that its training process has ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the connections."""
        self.selector.close()

    def run(self, command: Sequence[str]) -> int:
        """Starts the training process; returns its exit code, or the verdict's."""
        ours, theirs = socket.socketpair()
        with interrupts.blocked():  # until it handles signals
            process = subprocess.Popen(
                command,
                env={**os.environ, INSIDE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        pipe = Connection(ours)
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._receive(pipe))
        self.me.heartbeat = time.monotonic()
        signals = _Signals(process)
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            stack.callback(process.wait)
            stack.callback(process.kill)  # it may hang in a collective; a stopped one dies too
            stack.enter_context(interrupts.held())
            while True:
                signals.update()
                for key, _ in self.selector.select(POLL):
                    key.data()
                now = time.monotonic()
                if self.me.code is None and process.poll() is not None:
                    self._receive(pipe)  # its final error
                    self.me.code, self.me.since = process.returncode, now
                verdict = self.update(now)
                if verdict is not None:
                    if verdict.stacks and process.poll() is None:
                        process.send_signal(STACKS)
                        time.sleep(1)  # it prints, and is killed
                    if verdict.everywhere or self.cluster.process == 0:
                        say(verdict.message)
                    return verdict.code
                if self.me.code is not None and self.finished():
                    if self.me.error is not None and self.cluster.process == 0:
                        say(self.me.error)
                    return self.me.code

    def _receive(self, pipe: Connection) -> None:
        if pipe.closed:
            return
        while select.select([pipe.socket], [], [], 0)[0] and not pipe.closed:
            for message in pipe.read():
                self.me.heartbeat = time.monotonic()
                self.me.error = message.get("error", self.me.error)
                self.me.waits = message.get("waits")
                self.me.ending = self.me.ending or "ending" in message
        if pipe.closed:
            self.selector.unregister(pipe.socket)


class _Signals:
    """Forwards this process's signals to the training process."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process, self._sent = process, set[int]()
        self._interrupted: float | None = None

    def update(self) -> None:
        now = time.monotonic()
        if interrupts.came(signal.SIGTERM):
            self._send(signal.SIGTERM)
        if interrupts.came(signal.SIGINT):
            self._interrupted = self._interrupted or now
            if now - self._interrupted > LATER:  # a terminal sends it to both
                self._send(signal.SIGINT)

    def _send(self, number: int) -> None:
        if number not in self._sent:
            self._sent.add(number)
            self._process.send_signal(number)
