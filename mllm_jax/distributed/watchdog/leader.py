"""Leader watchdog: collects the status of every process and decides whether the run ends."""

import contextlib
import select
import selectors
import socket
import time

from mllm_jax.common import interrupts
from mllm_jax.common.errors import PREEMPTED, ConfigError, RunError
from mllm_jax.common.failures import reason
from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.base import POLL, Watchdog
from mllm_jax.distributed.watchdog.heartbeat import Connection, interval
from mllm_jax.distributed.watchdog.verdict import Member, Verdict, decide


class Leader(Watchdog):
    """The watchdog of process 0, to which all followers are connected."""

    def __init__(self, cluster: Cluster):
        super().__init__(cluster)
        self.members = {0: self.me}
        self.connections: dict[int, Connection] = {}
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
        end = time.monotonic() + self.timeouts.join_within
        with server:
            while len(self.members) < self.cluster.processes:
                interrupts.check()
                server.settimeout(min(POLL, max(0.01, end - time.monotonic())))
                try:
                    self._welcome(Connection(server.accept()[0]))
                except TimeoutError:
                    if time.monotonic() < end:
                        continue
                    missing = sorted(set(range(self.cluster.processes)) - self.members.keys())
                    self._tell(Verdict(text := self._missing(missing), 1, False))
                    raise RunError(text) from None
                except ConfigError as error:
                    self._tell(Verdict(str(error), 2, False))
                    raise
        for connection in self.connections.values():
            connection.send(start=True)

    def _missing(self, missing: list[int]) -> str:
        numbers = ", ".join(map(str, missing))
        return (
            f"process {numbers} of {self.cluster.processes} did not join within "
            f"{self.timeouts.join_within:g} s"
        )

    def _welcome(self, connection: Connection) -> None:
        connection.socket.settimeout(10)
        messages = connection.read()
        hello = messages[0] if messages else {}
        if not isinstance(hello, dict) or "process" not in hello:  # another program
            connection.socket.close()
            return
        connection.socket.settimeout(None)
        number, host = hello["process"], hello["host"]
        sender = f"process {number} on host {host}"
        count = self.cluster.processes
        taken = self.members.get(number)
        if hello["processes"] == count and taken is None:
            now = time.monotonic()
            self.members[number], self.connections[number] = Member(host, now, now), connection
            self.selector.register(
                connection.socket, selectors.EVENT_READ, lambda: self._hear(number)
            )
            return
        why = f"{sender} counts {hello['processes']} processes, process 0 counts {count}"
        if taken is not None:
            why = f"{sender}: host {taken.host} has that number too; give each its own"
        connection.send(verdict=Verdict(why, 2, False))
        raise ConfigError(why)

    def _hear(self, number: int) -> None:
        connection, member, now = self.connections[number], self.members[number], time.monotonic()
        for message in connection.read():
            member.heard, member.heartbeat = now, now - message["silence"]
            if message["code"] is not None and member.code is None:
                member.code, member.since = message["code"], now
            member.error, member.waits = message["error"], message["waits"]
            member.ending = message["ending"]
        if connection.closed:
            member.gone = True
            self.selector.unregister(connection.socket)

    def update(self, now: float) -> Verdict | None:
        self.me.heard = now
        if now - self._spoke > interval(self.timeouts.lost_after):
            self._spoke = now
            for connection in self.connections.values():
                connection.send(alive=True)
        verdict = decide(dict(sorted(self.members.items())), now, self.timeouts)
        if verdict is not None:
            self._tell(verdict)
        return verdict

    def _tell(self, verdict: Verdict) -> None:
        for connection in self.connections.values():
            connection.send(verdict=verdict)

    def close(self) -> None:
        """Waits until the followers have read the verdict: closing early would discard it."""
        end = time.monotonic() + 2
        for connection in self.connections.values():
            with contextlib.suppress(OSError):  # gone already
                connection.socket.shutdown(socket.SHUT_WR)
            while not connection.closed and (left := end - time.monotonic()) > 0:
                if select.select([connection.socket], [], [], left)[0]:
                    connection.read()
            connection.socket.close()
        super().close()

    def finished(self) -> bool:
        # if one has failed, a verdict will tell the others why
        return all(member.code in (0, PREEMPTED) for member in self.members.values())
