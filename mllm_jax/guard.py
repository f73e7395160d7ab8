"""Watches over a run of several processes: one that is lost ends all others, by name. Ground floor.

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
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mllm_jax.distributed import Cluster
from mllm_jax.errors import LOST, PREEMPTED, ConfigError, RunError

INSIDE = "MLLM_JAX_GUARD"  # set in a trainer: the file descriptor of its end of the socket pair
TURN = 0.1  # seconds between two looks at everything


def interval(lost_after: float) -> float:
    """Seconds between two signs of life."""
    return min(1.0, lost_after / 10)


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
        return [json.loads(line) for line in lines]


@dataclass
class Member:
    """What is known of one process of the run; times are those of `time.monotonic`."""

    host: str
    heard: float  # last line of its guard
    beat: float  # last sign of life of its trainer
    code: int | None = None  # how its trainer ended, below 0 by a signal
    error: str | None = None  # the line that its trainer would say
    gone: bool = False  # its guard's connection was closed
    since: float = field(default=float("inf"))  # when it was seen to end


class Verdict(NamedTuple):
    """Why all processes end."""

    message: str
    code: int
    everywhere: bool  # said by every process, not only by the first


def judge(members: Mapping[int, Member], now: float, lost_after: float) -> Verdict | None:
    """Whether the run has to end, and why; the lost are named before those that fell with them.

    A trainer that ended with a traceback or an abort may have done so because another one died: the
    verdict waits as long as there is one that may still turn out to be lost.
    """

    def name(i: int) -> str:
        return f"process {i} of {len(members)} (host {members[i].host})"

    lost = [f"{name(i)} {how}" for i, m in members.items() if (how := _lost(m, now, lost_after))]
    if lost:
        return Verdict(f"{'; '.join(lost)}; all processes end", LOST, True)
    failed = {i: m for i, m in members.items() if m.code not in (None, 0, PREEMPTED)}
    told = {i: m for i, m in failed.items() if m.error is not None}
    waited = now - min((m.since for m in failed.values()), default=now)
    if told and (waited > 1 or len(told) == len(members)):
        i = min(told)
        same = len({m.error for m in told.values()}) == 1 and (i == 0 or len(told) > 1)
        error, code = told[i].error or "", told[i].code or 1
        return Verdict(error if same else f"{name(i)}: {error}", code, False)
    quiet = [m for m in members.values() if m.code is None and _quiet(m, now, lost_after)]
    if failed and waited > 1 and not quiet:
        i = min(failed, key=lambda i: failed[i].since)
        code = failed[i].code or 1
        how = f"with code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
        message = f"{name(i)} ended {how}; see what it printed; all processes end"
        return Verdict(message, max(code, 1), True)
    stopped = [m for m in members.values() if m.code == PREEMPTED]
    if stopped and now - max(m.since for m in stopped) > lost_after:
        return Verdict(f"{name(0)}: {stopped[0].error}", PREEMPTED, False)
    return None


def _lost(m: Member, now: float, lost_after: float) -> str | None:
    if m.code is not None and m.code < 0 and -m.code != signal.SIGABRT:
        return f"was killed by {signal.Signals(-m.code).name}"
    if m.code is not None:
        return None
    if m.gone:
        return "is gone: its connection was closed"
    if now - m.heard > lost_after:
        return f"was not heard of for {now - m.heard:.0f} s (host down, stopped or cut off)"
    if now - m.beat > lost_after:
        return f"has stalled: no sign of life for {now - m.beat:.0f} s"
    return None


def _quiet(m: Member, now: float, lost_after: float) -> bool:
    return now - min(m.heard, m.beat) > 3 * interval(lost_after)


# ---------------------------------------------------------------------------------------- the guard


def watch(cluster: Cluster, command: Sequence[str]) -> int:
    """Runs the trainer under a guard; returns the exit code.

    Args:
        cluster: this process's place among the others.
        command: of the trainer, which makes itself known by `Trainer`.

    Raises:
        RunError: the others cannot be reached in `cluster.join_within` seconds.
        ConfigError: two processes claim one index, or count the processes differently.
    """
    guard = _First(cluster) if cluster.process == 0 else _Other(cluster)
    with contextlib.closing(guard):
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
        if "process" not in hello:  # a stranger
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

    def finished(self) -> bool:
        return all(member.code is not None for member in self.members.values())


class _Other(_Guard):
    """Guard 1, 2, ...: tells the first how its trainer fares, and does as it says."""

    def __init__(self, cluster: Cluster):
        super().__init__(cluster)
        self._verdict: Verdict | None = None
        self._started, self._spoke, self._sent = False, 0.0, False
        self._first = Member(cluster.host, 0.0, float("inf"))

    def gather(self) -> None:
        cluster, address = self.cluster, (self.cluster.host, self.cluster.port + 1)
        end = time.monotonic() + cluster.join_within
        while True:
            try:
                it = socket.create_connection(address, timeout=max(0.1, end - time.monotonic()))
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise RunError(
                        f"process {cluster.process} of {cluster.processes} (host {self.me.host}): "
                        f"no answer from process 0 at {address[0]}:{address[1]} within "
                        f"{cluster.join_within:g} s ({error.strerror or error}); does it run, and "
                        "may this host reach that port?"
                    ) from error
                time.sleep(min(0.5, cluster.join_within / 10))
        it.settimeout(None)
        self.line = Line(it)
        self.line.send(process=cluster.process, processes=cluster.processes, host=self.me.host)
        self.selector.register(it, selectors.EVENT_READ, self._hear)
        while not self._started and self._verdict is None and not self.line.closed:
            if not select.select([it], [], [], max(0.0, end + 10 - time.monotonic()))[0]:
                break
            self._hear()
        if not self._started and self._verdict is None:
            self._verdict = Verdict("process 0 was lost before the run began", LOST, True)

    def run(self, command: Sequence[str]) -> int:
        if self._verdict is not None:  # before the start; process 0 has said why
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
            lost = _lost(self._first, now, self.cluster.lost_after)
            if lost and not (self._sent and self.me.code in (0, PREEMPTED)):
                text = f"process 0 of {self.cluster.processes} (host {self._first.host}) {lost}"
                return Verdict(f"{text}; all processes end", LOST, True)
        return self._verdict

    def finished(self) -> bool:
        # one that failed stays for the verdict, which names the reason
        return self._sent and (self.me.code in (0, PREEMPTED) or self._first.gone)


def say(message: str) -> None:
    """The one line of an end."""
    print(f"mllm-jax: error: {message}", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------- the trainer


class Trainer:
    """A trainer's end of the socket pair: beats, and hands over its last line."""

    def __init__(self, descriptor: int, lost_after: float):
        """Starts to beat; a guard that is gone takes its trainer along."""
        self._line = Line(socket.socket(fileno=descriptor))
        self._every = interval(lost_after)
        threading.Thread(target=self._beat, name="guard", daemon=True).start()

    def _beat(self) -> None:
        while not self._line.closed:
            self._line.send(beat=True)
            if select.select([self._line.socket], [], [], self._every)[0]:
                self._line.read()  # the guard says nothing: this is its end
        os._exit(LOST)  # the main thread may hang in a collective

    def end(self, code: int, error: str | None) -> None:
        """Ends this process at once: JAX would wait for the others."""
        self._line.send(error=error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
