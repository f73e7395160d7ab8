"""Guard 0: hears all others and judges."""

import contextlib
import select
import selectors
import socket
import time

from mllm_jax.common import interrupts
from mllm_jax.common.errors import PREEMPTED, ConfigError, RunError
from mllm_jax.common.failures import reason
from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.base import TURN, Guard
from mllm_jax.distributed.watchdog.heartbeat import Line, interval
from mllm_jax.distributed.watchdog.verdict import Member, Verdict, judge


class First(Guard):
    """The guard to which all others are connected."""

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
            raise RunError(f"port {port}: cannot listen: {reason(error)}; give another") from error
        end = time.monotonic() + self.patience.join_within
        with server:
            while len(self.members) < self.cluster.processes:
                interrupts.check()
                server.settimeout(min(TURN, max(0.01, end - time.monotonic())))
                try:
                    self._welcome(Line(server.accept()[0]))
                except TimeoutError:
                    if time.monotonic() < end:
                        continue
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
            f"{self.patience.join_within:g} s"
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
            member.error, member.waits = words["error"], words["waits"]
        if line.closed:
            member.gone = True
            self.selector.unregister(line.socket)

    def turn(self, now: float) -> Verdict | None:
        self.me.heard = now
        if now - self._spoke > interval(self.patience.lost_after):
            self._spoke = now
            for line in self.lines.values():
                line.send(alive=True)
        verdict = judge(dict(sorted(self.members.items())), now, self.patience)
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
        # where one has failed, a verdict will tell the others why
        return all(member.code in (0, PREEMPTED) for member in self.members.values())
