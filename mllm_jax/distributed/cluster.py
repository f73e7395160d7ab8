"""Finds a process's place in a run: from flags, from `launch/`, or from a scheduler's variables."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from mllm_jax.common.errors import require


class Timeouts(NamedTuple):
    """Seconds that the processes of a run wait for each other."""

    lost_after: float = 60.0  # without a heartbeat: the process is lost
    join_within: float = 300.0  # hosts of a cluster do not start at the same moment
    stuck_after: float = 1800.0  # all are alive and none has finished its step


TIMEOUTS = Timeouts()


class Cluster(NamedTuple):
    """One process's place in a run."""

    coordinator: str  # HOST:PORT of process 0: JAX listens there, its watchdog on PORT + 1
    processes: int
    process: int
    local: int | None = None  # number on this host, where each process has one device of it
    timeouts: Timeouts = TIMEOUTS

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
    timeouts: Timeouts = TIMEOUTS,
) -> Cluster | None:
    """This process's place: the first of flags, MLLM_JAX_*, Slurm, Open MPI, GKE that sets it.

    Args:
        coordinator, processes, process: the flags; all or none.
        env: the environment.
        timeouts: how long the processes wait for each other.

    Returns:
        None for a run of one process. One process with flags is a cluster of one: on CPU its
        devices then sum in the order in which those of several processes do.

    Raises:
        ConfigError: only some of the three are given, or they contradict each other.
    """
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    named = {name: env.get(name) for name in (f"MLLM_JAX_{n}" for n in _NAMES)}
    for values in (flags, named):
        if any(value is not None for value in values.values()):
            missing = [name for name, value in values.items() if value is None]
            present = [name for name, value in values.items() if value is not None]
            require(
                not missing,
                f"{', '.join(present)} without {', '.join(missing)}: give all three, or none for a "
                "run of one process",
            )
            address, count, number = map(str, values.values())
            return _checked(address, count, number, None, timeouts)
    for detected in (_slurm(env), _open_mpi(env), _gke(env)):
        if detected is not None:
            return _checked(*detected, timeouts)
    return None


_NAMES = ("COORDINATOR", "PROCESSES", "PROCESS")


def _checked(
    coordinator: str, processes: str, process: str, local: str | None, timeouts: Timeouts
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
        f"process {process}: must lie in 0 to {int(processes) - 1} ({processes} processes)",
    )
    number = None if local is None else int(local)
    return Cluster(coordinator, int(processes), int(process), number, timeouts)


Detected = tuple[str, str, str, str | None] | None


def _slurm(env: Mapping[str, str]) -> Detected:
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


def _open_mpi(env: Mapping[str, str]) -> Detected:
    """Processes of mpirun; the first host's address is in the launcher's own."""
    size = env.get("OMPI_COMM_WORLD_SIZE", "1")
    if size == "1":
        return None
    address = re.search(r"tcp://([^,:]+)", env.get("OMPI_MCA_orte_hnp_uri", ""))
    require(
        address is not None,
        f"mpirun started {size} processes, but this Open MPI does not say where process 0 is: "
        "give MLLM_JAX_COORDINATOR, MLLM_JAX_PROCESSES and MLLM_JAX_PROCESS",
    )
    assert address is not None
    local = env["OMPI_COMM_WORLD_LOCAL_RANK"]
    alone = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1"
    port = 20000 + int(env["OMPI_MCA_orte_hnp_uri"].split(".")[0]) // 4096 % 6000 * 2
    rank = env["OMPI_COMM_WORLD_RANK"]
    return f"{address[1]}:{port}", size, rank, None if alone else local


def _gke(env: Mapping[str, str]) -> Detected:
    """Pods of one or several TPU slices on GKE; slices are numbered outermost."""
    workers = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = int(env.get("MEGASCALE_NUM_SLICES", "1"))
    if len(workers) * slices == 1 or "TPU_WORKER_ID" not in env:
        return None
    here = int(env.get("MEGASCALE_SLICE_ID", "0"))
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", workers[0]).partition(":")[0]
    process = here * len(workers) + int(env["TPU_WORKER_ID"])
    return f"{first}:8476", str(len(workers) * slices), str(process), None
