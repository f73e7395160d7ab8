"""Describes NVIDIA GPUs to JAX's compiler, so that a step compiles for them where none is.

The compiler is that of the CUDA flavour of JAX (extra [gpu-preflight]). Memory and collectives of a
program are those it has on the GPUs. Nothing is run, so nothing is tuned: which kernel a product
takes is not what it would be, and the workspace of cuDNN is not in the numbers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.extend import backend

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.hardware import Chip, GpuCores
from mllm_jax.common.versions import installed

EXTRA = "pip install 'mllm-jax[gpu-preflight]'"
COMPILER = ("jax-cuda12-pjrt", "jax-cuda12-plugin")  # of the version of JAX
CUDA, CUDNN = "nvidia-cuda-runtime-cu12", "nvidia-cudnn-cu12"
PACKAGES = (*COMPILER, CUDA, CUDNN)
# The versions that a program is compiled for: CUDA's are those of the wheels, cuDNN's decides which
# of its kernels may be called.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {cores.shared_memory}
  threads_per_core_limit: {cores.threads}
  core_count: {cores.count}
  fpus_per_core: {cores.float32_units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {cores.bandwidth}
  l2_cache_size: {cores.l2_cache}
  clock_rate_ghz: {cores.clock}
  device_memory_size: {cores.memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {cores.capability[0]} minor: {cores.capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} }}
runtime_version {{ major: {cuda[0]} minor: {cuda[1]} }}
device_description_str: "NVIDIA {kind}"
"""
OLDEST_CUDNN = 90800
RESERVED = 1024  # bytes of an SM's shared memory that a block cannot have


def name() -> str:
    """The compiler, its version, and what it does not know."""
    version = installed(COMPILER[0])[COMPILER[0]]
    return f"{COMPILER[0]} {version} without a GPU: kernels untuned, cuDNN's workspace not counted"


def missing(chip: Chip) -> str | None:
    """Why nothing compiles for a chip that is not here, in words; None if it does.

    Raises:
        ConfigError: the compiler belongs to another JAX.
    """
    if chip.cores is None:
        return f"XLA has no description of the {chip.kind}"
    have = installed(*PACKAGES)
    absent = [name for name in PACKAGES if name not in have]
    if absent:
        return f"not installed: {', '.join(absent)} ({EXTRA})"
    for name in COMPILER:
        require(
            _release(have[name]) == _release(jax.__version__),
            f"--hardware: {name} {have[name]} does not belong to JAX {jax.__version__}: {EXTRA} "
            f"(here: pip install '{name}=={jax.__version__}')",
        )
    return None


def _release(version: str) -> list[str]:
    return re.findall(r"\d+", version)[:3]


def devices(chip: Chip, count: int) -> list[Any]:
    """As many described GPUs of a node; no GPU is asked for.

    Raises:
        ConfigError: the compiler refuses the description.
    """
    assert chip.cores is not None
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=chip.kind,
            target_config=describe(chip.kind, chip.cores),
            topology=f"1x1x{count}",
        )
    except jax.errors.JaxRuntimeError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(
            f"--hardware: the compiler refuses {count} x {chip.kind}: {what}"
        ) from error
    return list(topology.devices)


def describe(kind: str, cores: GpuCores) -> str:
    """A GPU as XLA's `GpuTargetConfigProto`, in text form."""
    have = installed(CUDA, CUDNN)
    cuda, cudnn = _release(have[CUDA]), _release(have[CUDNN])
    optin = cores.shared_memory - RESERVED
    return _TARGET.format(cores=cores, kind=kind, optin=optin, cuda=cuda, cudnn=cudnn)


class Described(NamedTuple):
    """What kernels ask of a GPU."""

    compute_capability: str
    device_kind: str
    core_count: int
    platform: str = "gpu"


@contextmanager
def as_if_here(chip: Chip) -> Iterator[None]:
    """Within it what kernels ask of the GPU that is here is answered for this chip.

    They ask also while a program for others is traced: packed attention would be refused, by JAX's
    checks before cuDNN and by tokamax. Where no cuDNN is installed, it is of the oldest version
    that this JAX takes.
    """
    assert chip.cores is not None
    from jax._src.cudnn import fused_attention_stablehlo as checks
    from jax._src.lib import cuda_versions

    capability = chip.cores.capability
    device = Described("{}.{}".format(*capability), f"NVIDIA {chip.kind}", chip.cores.count)
    answers: dict[tuple[Any, str], Any] = {
        (checks, "check_compute_capability"): lambda text: capability >= _capability(text),
        (checks, "is_cuda_compute_capability_equal"): lambda text: capability == _capability(text),
        (backend, "get_default_device"): lambda: device,
    }
    if cuda_versions is None:
        answers[checks, "check_cudnn_version"] = lambda: OLDEST_CUDNN
    before = {place: getattr(*place) for place in answers}
    for place, answer in answers.items():
        setattr(*place, answer)
    try:
        yield
    finally:
        for place, check in before.items():
            setattr(*place, check)


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))
