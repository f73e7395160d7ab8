"""Several processes as one run: who they are, how they meet, what one of them does. Ground floor.

A process learns its place from flags, from the environment of `launch/`, or from Slurm, Open MPI or
GKE, before a device is touched. A run of one process passes through here unchanged.
"""

import functools
import os
import re
import signal
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from mllm_jax.errors import require

# JAX notices a lost process too, but ends without a name: the guard is to come first
JAX_HEARTBEAT = 5  # times `lost_after`
JOIN_WITHIN = 300.0  # seconds; hosts of a cluster do not start at the same moment
LOST_AFTER = 60.0  # seconds
SHUTDOWN = 24 * 3600  # seconds that finished processes wait for the first, which may evaluate


class Cluster(NamedTuple):
    """One process's place in a run."""

    coordinator: str  # HOST:PORT of process 0: JAX listens there, its guard on PORT + 1
    processes: int
    process: int
    local: int | None = None  # number on this host, where each process has one device of it
    lost_after: float = LOST_AFTER  # seconds of silence after which a process is lost
    join_within: float = JOIN_WITHIN  # seconds until all must be there

    @property
    def host(self) -> str:
        """Name or address of process 0's host."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """JAX's port there."""
        return int(self.coordinator.rpartition(":")[2])


def find(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    env: Mapping[str, str] = os.environ,
    lost_after: float = LOST_AFTER,
    join_within: float = JOIN_WITHIN,
) -> Cluster | None:
    """This process's place, from the first of flags, MLLM_JAX_*, Slurm, Open MPI, GKE that says it.

    Args:
        coordinator, processes, process: the flags; all or none.
        env: the environment.
        lost_after, join_within: as in `Cluster`.

    Returns:
        None for a run of one process. One process with flags is a cluster of one: on CPU its
        devices then sum in the order in which those of several processes do.

    Raises:
        ConfigError: only some of the three are given, or they contradict each other.
    """
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    named = {name: env.get(name) for name in (f"MLLM_JAX_{n}" for n in _NAMES)}
    for given in (flags, named):
        if any(value is not None for value in given.values()):
            missing = [name for name, value in given.items() if value is None]
            there = [name for name, value in given.items() if value is not None]
            require(
                not missing,
                f"{', '.join(there)} without {', '.join(missing)}: give all three, or none for a "
                "run of one process",
            )
            where, count, number = map(str, given.values())
            return _checked(where, count, number, None, lost_after, join_within)
    for found in (_slurm(env), _open_mpi(env), _gke(env)):
        if found is not None:
            return _checked(*found, lost_after, join_within)
    return None


_NAMES = ("COORDINATOR", "PROCESSES", "PROCESS")


def _checked(
    coordinator: str, processes: str, process: str, local: str | None, lost: float, join: float
) -> Cluster:
    host, _, port = coordinator.rpartition(":")
    require(
        host != "" and port.isdecimal() and 0 < int(port) < 65535,
        f"coordinator {coordinator!r}: expected HOST:PORT, PORT from 1 to 65534 (the next port is "
        "used too)",
    )
    require(
        processes.isdecimal() and int(processes) > 0, f"processes {processes}: must be 1 or more"
    )
    require(
        process.isdecimal() and int(process) < int(processes),
        f"process {process}: must lie in 0 to {int(processes) - 1}, there are {processes} processes",
    )
    number = None if local is None else int(local)
    return Cluster(coordinator, int(processes), int(process), number, lost, join)


Found = tuple[str, str, str, str | None] | None


def _slurm(env: Mapping[str, str]) -> Found:
    """A step of srun with several tasks; the port follows from the job's number."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(name in env for name in names) or env["SLURM_STEP_NUM_TASKS"] == "1":
        return None
    job, nodes, tasks, process = (env[name] for name in names)
    # node[007-009,012],gpu3 -> node007
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    require(first is not None, f"SLURM_STEP_NODELIST={nodes!r}: no node in it")
    assert first is not None
    # 8(x4) or 8(x3),4: several tasks on a node share its devices, one each
    shared = not env.get("SLURM_STEP_TASKS_PER_NODE", "1").startswith(("1(", "1,"))
    shared = shared and env.get("SLURM_STEP_TASKS_PER_NODE", "1") != "1"
    local = env.get("SLURM_LOCALID") if shared else None
    port = 20000 + int(job) % 6000 * 2
    return f"{first[1]}{first[2] or ''}:{port}", tasks, process, local


def _open_mpi(env: Mapping[str, str]) -> Found:
    """Processes of mpirun; the first host's address is in the launcher's own."""
    size = env.get("OMPI_COMM_WORLD_SIZE", "1")
    if size == "1":
        return None
    address = re.search(r"tcp://([^,:]+)", env.get("OMPI_MCA_orte_hnp_uri", ""))
    require(
        address is not None,
        f"mpirun started {size} processes, but this Open MPI does not say where the first one is: "
        "give MLLM_JAX_COORDINATOR, MLLM_JAX_PROCESSES and MLLM_JAX_PROCESS",
    )
    assert address is not None
    local = env["OMPI_COMM_WORLD_LOCAL_RANK"]
    alone = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1"
    port = 20000 + int(env["OMPI_MCA_orte_hnp_uri"].split(".")[0]) // 4096 % 6000 * 2
    rank = env["OMPI_COMM_WORLD_RANK"]
    return f"{address[1]}:{port}", size, rank, None if alone else local


def _gke(env: Mapping[str, str]) -> Found:
    """Pods of one or several TPU slices on GKE; slices are numbered outermost."""
    workers = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = int(env.get("MEGASCALE_NUM_SLICES", "1"))
    if len(workers) * slices == 1 or "TPU_WORKER_ID" not in env:
        return None
    here = int(env.get("MEGASCALE_SLICE_ID", "0"))
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", workers[0]).partition(":")[0]
    process = here * len(workers) + int(env["TPU_WORKER_ID"])
    return f"{first}:8476", str(len(workers) * slices), str(process), None


# ------------------------------------------------------------------------------------- in a trainer


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
        initialization_timeout=int(cluster.join_within),
        heartbeat_timeout_seconds=max(10, int(JAX_HEARTBEAT * cluster.lost_after)),
        shutdown_timeout_seconds=SHUTDOWN,
    )


def is_first() -> bool:
    """Whether this process writes what is single: process 0, or the only one."""
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process stands at the barrier of this name; nothing in a run of one."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(number: int) -> int:
    """What process 0 says: for what is read from a shared folder, which hosts may see late."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def slowest(seconds: float) -> Any:
    """The largest of all processes' numbers, on its way: a float, or an array to be fetched."""
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
    """Whether a run is to stop where it can go on: SIGTERM came to one of its processes.

    In a run of several, JAX takes the signal, and agrees with the others on a step that none of
    them has done yet, in the background: asking costs nothing.
    """

    def __init__(self):
        self._asked, self._before = False, None

    def __enter__(self) -> "Stop":
        import jax

        self._several = jax.distributed.is_initialized()
        # only a main thread may catch signals; one that trains in another thread has its own way
        if not self._several and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def due(self, step: int) -> bool:
        """Whether this step is the last; every process asks once for every step, in order."""
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._asked

    def _ask(self, *_: Any) -> None:
        self._asked = True
