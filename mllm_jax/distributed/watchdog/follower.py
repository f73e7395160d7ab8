"""Follower watchdog: reports its process's status to the leader and carries out its verdict."""

import select
import selectors
import socket
import time
from collections.abc import Sequence

from mllm_jax.common import interrupts
from mllm_jax.common.errors import LOST, PREEMPTED, RunError, say
from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.base import POLL, Watchdog
from mllm_jax.distributed.watchdog.heartbeat import Connection, interval
from mllm_jax.distributed.watchdog.verdict import Member, Verdict, lost_how


class Follower(Watchdog):
    """The watchdog of a process other than 0, with one connection: to the leader."""

    def __init__(self, cluster: Cluster):
        """Connects to the leader, which may start later."""
        super().__init__(cluster)
        self._verdict: Verdict | None = None
        self._started, self._spoke, self._sent = False, 0.0, False
        self._leader = Member(cluster.host, 0.0, float("inf"))
        self._end = time.monotonic() + self.timeouts.join_within
        self.connection = Connection(self._connect())

    def _connect(self) -> socket.socket:
        cluster, address = self.cluster, (self.cluster.host, self.cluster.port + 1)
        while True:
            interrupts.check()
            left = self._end - time.monotonic()
            try:
                return socket.create_connection(address, timeout=max(0.1, left))
            except OSError as error:
                if left < 0:
                    raise RunError(
                        f"process {cluster.process} of {cluster.processes} (host {self.me.host}): "
                        f"no answer from process 0 at {address[0]}:{address[1]} within "
                        f"{self.timeouts.join_within:g} s ({error.strerror or error}); does it "
                        "run, and may this host reach that port?"
                    ) from error
                time.sleep(min(0.5, self.timeouts.join_within / 10))

    def gather(self) -> None:
        connection, me = self.connection.socket, self.cluster
        connection.settimeout(None)
        self.connection.send(process=me.process, processes=me.processes, host=self.me.host)
        self.selector.register(connection, selectors.EVENT_READ, self._hear)
        while not self._started and self._verdict is None and not self.connection.closed:
            # process 0 began to wait at another moment, and reports when it gives up
            left = self._end + self.timeouts.join_within - time.monotonic()
            interrupts.check()
            if left < 0:
                break
            if select.select([connection], [], [], min(POLL, left))[0]:
                self._hear()
        if not self._started and self._verdict is None:
            self._verdict = Verdict("process 0 was lost before the run began", LOST, True)

    def close(self) -> None:
        self.connection.socket.close()
        super().close()

    def run(self, command: Sequence[str]) -> int:
        if self._verdict is not None:  # before the start
            if self._verdict.everywhere:
                say(self._verdict.message)
            return self._verdict.code
        return super().run(command)

    def _hear(self) -> None:
        for message in self.connection.read():
            self._leader.heard = time.monotonic()
            self._started = self._started or "start" in message
            if "verdict" in message:
                self._verdict = Verdict(*message["verdict"])
        if self.connection.closed:
            self._leader.gone = True
            self.selector.unregister(self.connection.socket)

    def update(self, now: float) -> Verdict | None:
        ended = self.me.code is not None and not self._sent
        if ended or now - self._spoke > interval(self.timeouts.lost_after):
            self._spoke, self._sent = now, self.me.code is not None
            me = self.me
            status = {"code": me.code, "error": me.error, "waits": me.waits, "ending": me.ending}
            self.connection.send(silence=now - me.heartbeat, **status)
        if self._verdict is None:
            lost = lost_how(self._leader, now, self.timeouts)
            if lost and not (self._sent and self.me.code in (0, PREEMPTED)):
                text = f"process 0 of {self.cluster.processes} (host {self._leader.host}) {lost}"
                return Verdict(f"{text}; all processes end", LOST, True)
        return self._verdict

    def finished(self) -> bool:
        # after a failure wait for the verdict, which names the reason
        return self._sent and (self.me.code in (0, PREEMPTED) or self._leader.gone)
