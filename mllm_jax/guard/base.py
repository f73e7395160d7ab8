"""What the first guard and the others share: the trainer, and the loop around it."""

import os
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from mllm_jax.guard.cluster import Cluster
from mllm_jax.guard.judge import Member, Verdict
from mllm_jax.guard.trainer import INSIDE, STACKS, Line, say

TURN = 0.1  # seconds between two looks at everything


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
        trainer = subprocess.Popen(
            command,
            env={**os.environ, INSIDE: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        pipe = Line(ours)
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._from_trainer(pipe))
        self.me.beat = time.monotonic()
        signal.signal(signal.SIGTERM, lambda *_: trainer.send_signal(signal.SIGTERM))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the trainer too
        try:
            while True:
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
        finally:
            trainer.kill()  # it may hang in a collective; a stopped one dies too
            trainer.wait()
            ours.close()

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
