"""Runs a command under a watchdog: if one process of a run is lost, all others end and name it.

Every process of a run is two: the watchdog, which imports no JAX and so never hangs in a
collective, and its child, the training process, which is the same command again.

    leader (listens)    <- TCP, a line of JSON each second ->  follower 1, follower 2, ...
       | socket pair                                              | socket pair
    training process 0  <-       JAX, gloo, NCCL, ICI      ->  training process 1, ...

Heartbeats come from a thread of their own, so compiling for minutes is not mistaken for a stall.
The watchdogs learn of a death at once and of a stall within `lost_after` seconds; they name the
process and its host, kill their training processes, which may hang in a collective for ever, and
end with `LOST`. If all are alive and none makes progress, they report what each waits for.
"""

import contextlib
from collections.abc import Sequence

from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.follower import Follower
from mllm_jax.distributed.watchdog.leader import Leader


def watch(cluster: Cluster, command: Sequence[str]) -> int:
    """Runs a command under a watchdog; returns the exit code.

    Args:
        cluster: this process's place among the others.
        command: of the training process, which reports by `Heartbeat`.

    Raises:
        RunError: the others cannot be reached in `cluster.timeouts.join_within` seconds.
        ConfigError: two processes claim one index, or count the processes differently.
    """
    with contextlib.closing((Follower if cluster.process else Leader)(cluster)) as watchdog:
        watchdog.gather()
        return watchdog.run(command)
