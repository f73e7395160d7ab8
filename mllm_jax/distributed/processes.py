"""Joins several processes to one run: what they agree on, and which of them writes.

A run of one process passes through here unchanged.
"""

import functools
import signal
import threading
from contextlib import ExitStack
from typing import Any

from mllm_jax.common import interrupts
from mllm_jax.distributed.cluster import Cluster
from mllm_jax.distributed.watchdog.heartbeat import waits_for

# JAX detects a lost process too, but does not name it: the watchdog must be faster
JAX_HEARTBEAT = 5  # times `lost_after`
SHUTDOWN = 24 * 3600  # seconds that finished processes wait for process 0, which may evaluate


def join(cluster: Cluster) -> None:
    """Makes JAX see the devices of all processes; before any of them is touched."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.processes,
        cluster.process,
        local_device_ids=cluster.local,
        # JAX would give a process under Slurm one device even where it has the whole node
        cluster_detection_method="deactivate",
        initialization_timeout=int(cluster.timeouts.join_within),
        heartbeat_timeout_seconds=max(10, int(JAX_HEARTBEAT * cluster.timeouts.lost_after)),
        shutdown_timeout_seconds=SHUTDOWN,
    )


def is_first() -> bool:
    """Whether this process writes what is single: process 0, or the only one."""
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached this barrier; does nothing in a run of one process."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        with waits_for(f"the others, {name}"):
            multihost_utils.sync_global_devices(name)


def of_first(number: int) -> int:
    """Process 0's value: for what is read from a shared folder, which hosts may see late."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return number
    with waits_for("what process 0 says"):
        return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def slowest(seconds: float) -> Any:
    """The largest of all processes' numbers: a float, or an array that is still being computed."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return seconds
    compiled, places = _largest()
    mine = np.full(jax.local_device_count(), seconds, np.float32)
    return compiled(jax.make_array_from_process_local_data(places, mine))


@functools.cache
def _largest() -> tuple[Any, Any]:
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, P())
    return jax.jit(jax.numpy.max, out_shardings=whole), NamedSharding(mesh, P("all"))


class Stop:
    """Whether a run must stop at the next step after which it can resume: one process got SIGTERM.

    In a run of several, JAX takes the signal, and agrees with the others on a step that none of
    them has done yet, in the background: asking costs nothing.
    """

    def __init__(self):
        self._asked, self._before = False, None
        self._holds = ExitStack()

    def __enter__(self) -> "Stop":
        import jax

        self._several = jax.distributed.is_initialized()
        # only a main thread may catch signals; one that trains in another thread has its own way
        if not self._several and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        self._holds.close()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def hold(self) -> None:
        """From here on only `due` reacts to SIGTERM, however long a step or a save takes."""
        self._holds.enter_context(interrupts.held())

    def due(self, step: int) -> bool:
        """Whether this step is the last; every process asks once for every step, in order."""
        from jax.experimental import multihost_utils

        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked or interrupts.came(signal.SIGTERM)

    def _ask(self, *_: Any) -> None:
        self._asked = True
