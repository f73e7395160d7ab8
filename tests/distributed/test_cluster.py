"""A process's place, from flags and from what schedulers say."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.distributed.cluster import find

SLURM = {
    "SLURM_JOB_ID": "6007",
    "SLURM_STEP_NODELIST": "node[007-009,012],gpu3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "1(x5)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
GKE = {"TPU_WORKER_HOSTNAMES": "tpu-0.tpu,tpu-1.tpu", "TPU_WORKER_ID": "1"}
OURS = {
    "MLLM_JAX_COORDINATOR": "[fd00::1]:9000",
    "MLLM_JAX_PROCESSES": "2",
    "MLLM_JAX_PROCESS": "1",
}


def place(env, *flags):
    coordinator, processes, process = flags or (None, None, None)
    found = find(coordinator, processes, process, env)
    return None if found is None else found[:4]


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, None),
        (OURS, ("[fd00::1]:9000", 2, 1, None)),
        (SLURM, ("node007:20014", 5, 3, None)),
        (SLURM | {"SLURM_STEP_NODELIST": "n1,n2"}, ("n1:20014", 5, 3, None)),
        (SLURM | {"SLURM_STEP_NODELIST": "big-node"}, ("big-node:20014", 5, 3, None)),
        # several tasks on a node: one device each
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, ("node007:20014", 5, 3, 0)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "12"}, ("node007:20014", 5, 3, 0)),
        # one task; a batch script, whose variables are not those of a step
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "6007", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        (MPI, ("10.96.0.1:23840", 4, 2, 0)),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ("10.96.0.1:23840", 4, 2, None)),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (GKE, ("tpu-0.tpu:8476", 2, 1, None)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (
            GKE
            | {
                "MEGASCALE_NUM_SLICES": "3",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_COORDINATOR_ADDRESS": "slice-0-0:8080",
            },
            ("slice-0-0:8476", 6, 5, None),
        ),
    ],
)
def test_places(env, wanted):
    assert place(env) == wanted


def test_flags_come_before_the_environment():
    assert place(SLURM | OURS, "a:1", 1, 0) == ("a:1", 1, 0, None)
    assert place(SLURM | OURS) == ("[fd00::1]:9000", 2, 1, None)


def test_host_and_port():
    found = find(None, None, None, OURS)
    assert found is not None and (found.host, found.port) == ("fd00::1", 9000)


@pytest.mark.parametrize(
    ("env", "flags", "message"),
    [
        ({}, ("a:1", None, None), "--coordinator without --processes, --process: give all three"),
        ({}, (None, 2, 0), "--processes, --process without --coordinator"),
        ({"MLLM_JAX_PROCESS": "1"}, (), "MLLM_JAX_PROCESS without MLLM_JAX_COORDINATOR"),
        ({}, ("a:1", 2, 2), r"process 2: must lie in 0 to 1 \(2 processes\)"),
        ({}, ("a:1", 2, -1), "process -1: must lie in 0 to 1"),
        ({}, ("a:1", 0, 0), "processes 0: must be 1 or more"),
        ({}, ("a", 2, 1), "coordinator 'a': expected HOST:PORT"),
        ({}, ("a:65535", 2, 1), "PORT from 1 to 65534"),
        (MPI | {"OMPI_MCA_orte_hnp_uri": ""}, (), "give MLLM_JAX_COORDINATOR"),
    ],
)
def test_refusals(env, flags, message):
    with pytest.raises(ConfigError, match=message):
        place(env, *flags)
