"""What the first guard and the others share: the trainer, and the loop around it."""

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
from mllm_jax.distributed.watchdog.heartbeat import INSIDE, STACKS, Line
from mllm_jax.distributed.watchdog.verdict import Member, Verdict

TURN = 0.1  # seconds between two looks at everything
LATER = 2.0  # seconds after which a trainer that has not ended of Ctrl-C is sent it


class Guard:
    """One process's guard; `First` and `Other` know how to hear of the others."""

    def __init__(self, cluster: Cluster):
        self.cluster, self.patience = cluster, cluster.patience
        self.selector = selectors.DefaultSelector()
        now = time.monotonic()
        self.me = Member(socket.gethostname(), now, now)

    def gather(self) -> None:
        """Waits until all processes are there."""
        raise NotImplementedError

    def turn(self, now: float) -> Verdict | None:
        """Passes on what is new; returns the verdict, if one has fallen."""
        raise NotImplementedError

    def finished(self) -> bool:
        """Whether this guard may leave, its trainer having ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the connections."""
        self.selector.close()

    def run(self, command: Sequence[str]) -> int:
        """Starts the trainer and watches until it has ended or a verdict falls."""
        ours, theirs = socket.socketpair()
        with interrupts.blocked():  # until it can hear them
            trainer = subprocess.Popen(
                command,
                env={**os.environ, INSIDE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        pipe = Line(ours)
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._from_trainer(pipe))
        self.me.beat = time.monotonic()
        signals = _Signals(trainer)
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            stack.callback(trainer.wait)
            stack.callback(trainer.kill)  # it may hang in a collective; a stopped one dies too
            stack.enter_context(interrupts.held())
            while True:
                signals.turn()
                for key, _ in self.selector.select(TURN):
                    key.data()
                now = time.monotonic()
                if self.me.code is None and trainer.poll() is not None:
                    self._from_trainer(pipe)  # its last words
                    self.me.code, self.me.since = trainer.returncode, now
                verdict = self.turn(now)
                if verdict is not None:
                    if verdict.stacks and trainer.poll() is None:
                        trainer.send_signal(STACKS)
                        time.sleep(1)  # it prints, and is killed
                    if verdict.everywhere or self.cluster.process == 0:
                        say(verdict.message)
                    return verdict.code
                if self.me.code is not None and self.finished():
                    if self.me.error is not None and self.cluster.process == 0:
                        say(self.me.error)
                    return self.me.code

    def _from_trainer(self, pipe: Line) -> None:
        if pipe.closed:
            return
        while select.select([pipe.socket], [], [], 0)[0] and not pipe.closed:
            for line in pipe.read():
                self.me.beat = time.monotonic()
                self.me.error = line.get("error", self.me.error)
                self.me.waits = line.get("waits")
        if pipe.closed:
            self.selector.unregister(pipe.socket)


class _Signals:
    """Passes what a guard gets on to its trainer."""

    def __init__(self, trainer: subprocess.Popen[bytes]):
        self._trainer, self._sent = trainer, set[int]()
        self._interrupted: float | None = None

    def turn(self) -> None:
        now = time.monotonic()
        if interrupts.came(signal.SIGTERM):
            self._send(signal.SIGTERM)
        if interrupts.came(signal.SIGINT):
            self._interrupted = self._interrupted or now
            if now - self._interrupted > LATER:  # a terminal sends it to the trainer too
                self._send(signal.SIGINT)

    def _send(self, number: int) -> None:
        if number not in self._sent:
            self._sent.add(number)
            self._trainer.send_signal(number)
