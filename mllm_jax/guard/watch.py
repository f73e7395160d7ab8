"""Watches over a run of several processes: one that is lost ends all others, by name.

Every process of a run is two: the guard, which imports no JAX and so never hangs in a collective,
and under it the trainer, the same command again, which does the work.

    guard 0 (listens)  <- TCP, a line of JSON each second ->  guard 1, guard 2, ...
       | socket pair                                             | socket pair
    trainer 0          <-       JAX, gloo, NCCL, ICI       ->  trainer 1, ...

A trainer beats from a thread of its own, so compiling for minutes is no silence. The guards hear of
a death at once and of a stall within `lost_after` seconds; they name the process and its host, kill
their trainers, which may hang in a collective for ever, and end with `LOST`.
"""

import contextlib
import os
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from mllm_jax.errors import LOST, PREEMPTED, ConfigError, RunError
from mllm_jax.guard.cluster import Cluster
from mllm_jax.guard.judge import Member, Verdict, judge, lost_how
from mllm_jax.guard.trainer import INSIDE, Line, interval, say

TURN = 0.1  # seconds between two looks at everything


def watch(cluster: Cluster, command: Sequence[str]) -> int:
    """Runs the trainer under a guard; returns the exit code.

    Args:
        cluster: this process's place among the others.
        command: of the trainer, which makes itself known by `Trainer`.

    Raises:
        RunError: the others cannot be reached in `cluster.join_within` seconds.
        ConfigError: two processes claim one index, or count the processes differently.
    """
    with contextlib.closing((_Other if cluster.process else _First)(cluster)) as guard:
        guard.gather()
        return guard.run(command)


class _Guard:
    """What the first guard and the others share: the trainer and the loop around it."""

    def __init__(self, cluster: Cluster):
        self.cluster, self.selector = cluster, selectors.DefaultSelector()
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
        if pipe.closed:
            self.selector.unregister(pipe.socket)


class _First(_Guard):
    """Guard 0: hears all others and judges."""

    def __init__(self, cluster: Cluster):
        super().__init__(cluster)
        self.members = {0: self.me}
        self.lines: dict[int, Line] = {}
        self._spoke = 0.0

    def gather(self) -> None:
        port = self.cluster.port + 1
        both = socket.has_dualstack_ipv6()
        try:
            server = socket.create_server(
                ("", port),
                family=socket.AF_INET6 if both else socket.AF_INET,
                dualstack_ipv6=both,
                backlog=self.cluster.processes,
            )
        except OSError as error:
            raise RunError(f"port {port}: cannot listen: {error.strerror}; give another") from error
        end = time.monotonic() + self.cluster.join_within
        with server:
            while len(self.members) < self.cluster.processes:
                server.settimeout(max(0.01, end - time.monotonic()))
                try:
                    self._welcome(Line(server.accept()[0]))
                except TimeoutError:
                    missing = sorted(set(range(self.cluster.processes)) - self.members.keys())
                    self._tell(Verdict(text := self._missing(missing), 1, False))
                    raise RunError(text) from None
                except ConfigError as error:
                    self._tell(Verdict(str(error), 2, False))
                    raise
        for line in self.lines.values():
            line.send(start=True)

    def _missing(self, missing: list[int]) -> str:
        numbers = ", ".join(map(str, missing))
        return (
            f"process {numbers} of {self.cluster.processes} did not join within "
            f"{self.cluster.join_within:g} s"
        )

    def _welcome(self, line: Line) -> None:
        line.socket.settimeout(10)
        said = line.read()
        hello = said[0] if said else {}
        if not isinstance(hello, dict) or "process" not in hello:  # a stranger
            line.socket.close()
            return
        line.socket.settimeout(None)
        number, host = hello["process"], hello["host"]
        where = f"process {number} on host {host}"
        count = self.cluster.processes
        taken = self.members.get(number)
        if hello["processes"] == count and taken is None:
            now = time.monotonic()
            self.members[number], self.lines[number] = Member(host, now, now), line
            self.selector.register(line.socket, selectors.EVENT_READ, lambda: self._hear(number))
            return
        why = f"{where} counts {hello['processes']} processes, process 0 counts {count}"
        if taken is not None:
            why = f"{where}: host {taken.host} has that number too; give each its own"
        line.send(verdict=Verdict(why, 2, False))
        raise ConfigError(why)

    def _hear(self, number: int) -> None:
        line, member, now = self.lines[number], self.members[number], time.monotonic()
        for words in line.read():
            member.heard, member.beat = now, now - words["silence"]
            if words["code"] is not None and member.code is None:
                member.code, member.since = words["code"], now
            member.error = words["error"]
        if line.closed:
            member.gone = True
            self.selector.unregister(line.socket)

    def turn(self, now: float) -> Verdict | None:
        self.me.heard = now
        if now - self._spoke > interval(self.cluster.lost_after):
            self._spoke = now
            for line in self.lines.values():
                line.send(alive=True)
        verdict = judge(dict(sorted(self.members.items())), now, self.cluster.lost_after)
        if verdict is not None:
            self._tell(verdict)
        return verdict

    def _tell(self, verdict: Verdict) -> None:
        for line in self.lines.values():
            line.send(verdict=verdict)

    def close(self) -> None:
        """Waits until the others have read the last words: closing early would take them away."""
        end = time.monotonic() + 2
        for line in self.lines.values():
            with contextlib.suppress(OSError):  # gone already
                line.socket.shutdown(socket.SHUT_WR)
            while not line.closed and (left := end - time.monotonic()) > 0:
                if select.select([line.socket], [], [], left)[0]:
                    line.read()
            line.socket.close()
        super().close()

    def finished(self) -> bool:
        return all(member.code is not None for member in self.members.values())


class _Other(_Guard):
    """Guard 1, 2, ...: tells the first how its trainer fares, and does as it says."""

    def __init__(self, cluster: Cluster):
        """Finds the first guard, which may start later."""
        super().__init__(cluster)
        self._verdict: Verdict | None = None
        self._started, self._spoke, self._sent = False, 0.0, False
        self._first = Member(cluster.host, 0.0, float("inf"))
        self._end = time.monotonic() + cluster.join_within
        self.line = Line(self._connect())

    def _connect(self) -> socket.socket:
        cluster, address = self.cluster, (self.cluster.host, self.cluster.port + 1)
        while True:
            left = self._end - time.monotonic()
            try:
                return socket.create_connection(address, timeout=max(0.1, left))
            except OSError as error:
                if left < 0:
                    raise RunError(
                        f"process {cluster.process} of {cluster.processes} (host {self.me.host}): "
                        f"no answer from process 0 at {address[0]}:{address[1]} within "
                        f"{cluster.join_within:g} s ({error.strerror or error}); does it run, and "
                        "may this host reach that port?"
                    ) from error
                time.sleep(min(0.5, cluster.join_within / 10))

    def gather(self) -> None:
        it, me = self.line.socket, self.cluster
        it.settimeout(None)
        self.line.send(process=me.process, processes=me.processes, host=self.me.host)
        self.selector.register(it, selectors.EVENT_READ, self._hear)
        while not self._started and self._verdict is None and not self.line.closed:
            # process 0 began to wait at another moment, and says so when it gives up
            left = self._end + me.join_within - time.monotonic()
            if left < 0 or not select.select([it], [], [], left)[0]:
                break
            self._hear()
        if not self._started and self._verdict is None:
            self._verdict = Verdict("process 0 was lost before the run began", LOST, True)

    def close(self) -> None:
        self.line.socket.close()
        super().close()

    def run(self, command: Sequence[str]) -> int:
        if self._verdict is not None:  # before the start
            if self._verdict.everywhere:
                say(self._verdict.message)
            return self._verdict.code
        return super().run(command)

    def _hear(self) -> None:
        for words in self.line.read():
            self._first.heard = time.monotonic()
            self._started = self._started or "start" in words
            if "verdict" in words:
                self._verdict = Verdict(*words["verdict"])
        if self.line.closed:
            self._first.gone = True
            self.selector.unregister(self.line.socket)

    def turn(self, now: float) -> Verdict | None:
        ended = self.me.code is not None and not self._sent
        if ended or now - self._spoke > interval(self.cluster.lost_after):
            self._spoke, self._sent = now, self.me.code is not None
            self.line.send(silence=now - self.me.beat, code=self.me.code, error=self.me.error)
        if self._verdict is None:
            lost = lost_how(self._first, now, self.cluster.lost_after)
            if lost and not (self._sent and self.me.code in (0, PREEMPTED)):
                text = f"process 0 of {self.cluster.processes} (host {self._first.host}) {lost}"
                return Verdict(f"{text}; all processes end", LOST, True)
        return self._verdict

    def finished(self) -> bool:
        # one that failed stays for the verdict, which names the reason
        return self._sent and (self.me.code in (0, PREEMPTED) or self._first.gone)
