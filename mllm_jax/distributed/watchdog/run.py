"""Watches over a run of several processes: one that is lost ends all others, by name.

Every process of a run is two: the guard, which imports no JAX and so never hangs in a collective,
and under it the trainer, the same command again, which does the work.

    guard 0 (listens)  <- TCP, a line of JSON each second ->  guard 1, guard 2, ...
       | socket pair                                             | socket pair
    trainer 0          <-       JAX, gloo, NCCL, ICI       ->  trainer 1, ...

A trainer beats from a thread of its own, so compiling for minutes is no silence. The guards hear of
a death at once and of a stall within `lost_after` seconds; they name the process and its host, kill
their trainers, which may hang in a collective for ever, and end with `LOST`. Where all are alive
and none gets any further, they say what each waits for.
"""

import contextlib
from collections.abc import Sequence

from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.follower import Other
from mllm_jax.distributed.watchdog.leader import First


def watch(cluster: Cluster, command: Sequence[str]) -> int:
    """Runs the trainer under a guard; returns the exit code.

    Args:
        cluster: this process's place among the others.
        command: of the trainer, which makes itself known by `Trainer`.

    Raises:
        RunError: the others cannot be reached in `cluster.patience.join_within` seconds.
        ConfigError: two processes claim one index, or count the processes differently.
    """
    with contextlib.closing((Other if cluster.process else First)(cluster)) as guard:
        guard.gather()
        return guard.run(command)
