"""Parses `--hardware` and finds devices to compile for, or to estimate with.

v5e:16x16   256 TPU chips of a slice        h200:8   8 GPUs of one node        cpu:8   this machine
"""

import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any, NamedTuple

import jax

from mllm_jax.common import hardware
from mllm_jax.common.errors import ConfigError, closest, require
from mllm_jax.common.hardware import Chip
from mllm_jax.preflight import gpu_target

# those whose memory and links are known, and this machine's processors
CHIPS: dict[str, Chip] = {
    name: chip
    for name, chip in hardware.CHIPS.items()
    if chip.memory is not None or chip.platform == "cpu"
}
DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA: of Linux, of Windows' subsystem for Linux
EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:8x8, h200:8 or cpu:8"


class Hardware(NamedTuple):
    """The chips that a step is planned for."""

    word: str  # as typed
    name: str  # a key of CHIPS
    chip: Chip
    count: int


def parse(word: str) -> Hardware:
    """A hardware word -> Hardware.

    Raises:
        ConfigError: an unknown chip, or a shape that such chips do not come in.
    """
    name, colon, shape = word.partition(":")
    if name not in CHIPS:
        near = closest(name, CHIPS)
        meant = f" (did you mean {near}?)" if near else ""
        raise ConfigError(
            f"--hardware {word}: no chip {name!r} is known{meant}; known are {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    right = re.fullmatch(r"[1-9]\d{0,4}" + r"x[1-9]\d{0,4}" * (chip.axes - 1), shape)
    form = "x".join("ABC"[: chip.axes]) if chip.axes > 1 else "COUNT"
    require(
        bool(colon) and right is not None,
        f"--hardware {word}: give {name}:{form}, positive numbers, for example {EXAMPLES}",
    )
    return Hardware(word, name, chip, math.prod(int(n) for n in shape.split("x")))


class Devices(NamedTuple):
    """What a mesh is made of."""

    devices: list[Any]  # as many as the hardware has
    compiles: bool  # whether a program for them is one for the hardware
    compiler: str | None = None  # what compiles for hardware that is not here
    reason: str | None = None  # why nothing compiles
    tracing: Callable[[], AbstractContextManager[None]] = nullcontext  # around tracing of a step


def find_devices(hardware: Hardware) -> Devices:
    """Devices to plan for, and to compile for if they are of that kind.

    TPUs: described by libtpu, none needs to be here. GPUs: those of this machine if they are of the
    kind and enough; otherwise described ones where the extra [gpu-preflight] is installed, and
    pretended ones that only carry shapes where it is not. CPUs: as many as are asked for,
    pretended. Call it before anything else asks JAX for devices.

    Raises:
        ConfigError: no libtpu or one for another JAX, a shape that libtpu refuses, or devices that
            can no longer be asked for.
    """
    if hardware.chip.platform == "tpu":
        return Devices(_tpu_devices(hardware), True, f"libtpu {metadata.version('libtpu')}")
    if hardware.chip.platform == "gpu":
        return _gpu_devices(hardware)
    _pretend(hardware)
    return Devices(_cpu_devices(hardware), True)


def _gpu_devices(hardware: Hardware) -> Devices:
    if not any(map(os.path.exists, DRIVERS)):  # JAX's CUDA flavour would complain
        jax.config.update("jax_platforms", "cpu")
    reason = gpu_target.missing(hardware.chip)
    if reason is not None:
        _pretend(hardware)
    here = [d for d in jax.devices() if hardware.chip.kind in d.device_kind]
    if len(here) >= hardware.count:
        return Devices(here[: hardware.count], True)
    as_if_here = functools.partial(gpu_target.as_if_here, hardware.chip)
    tracing = nullcontext if hardware.chip.cores is None else as_if_here
    if reason is not None:
        return Devices(_cpu_devices(hardware), False, reason=reason, tracing=tracing)
    described = gpu_target.devices(hardware.chip, hardware.count)
    return Devices(described, True, gpu_target.name(), tracing=tracing)


def _cpu_devices(hardware: Hardware) -> list[Any]:
    devices = jax.devices("cpu")
    require(
        len(devices) >= hardware.count,
        f"--hardware {hardware.word}: this process already has {len(devices)} CPU devices; more "
        "can only be pretended in a process of its own",
    )
    return devices[: hardware.count]


def _pretend(hardware: Hardware) -> None:
    """Asks for as many CPU devices; once JAX has started, the devices it has must suffice."""
    if hardware.chip.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", hardware.count)
    except RuntimeError:  # the backend is up
        return


def _tpu_devices(hardware: Hardware) -> list[Any]:
    _check_libtpu(hardware)
    # nothing is run: no other platform is needed, and no TPU is looked for on this machine
    jax.config.update("jax_platforms", "cpu")
    quiet = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock protects chips, and none is used
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5e-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)

    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=hardware.word)
    except jax.errors.JaxRuntimeError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(f"--hardware {hardware.word}: libtpu refuses it: {what}") from error
    return list(topology.devices)


def _check_libtpu(hardware: Hardware) -> None:
    """libtpu must be the one this JAX was released with: another one's programs may be unreadable.

    (Seen: JAX 0.10.2 with libtpu 0.0.52 compiles, but cannot print what it compiled.)
    """
    requirement = next(
        (r for r in metadata.requires("jax") or () if re.match(r"libtpu\b", r)), "libtpu"
    ).partition(";")[0]
    requirement = requirement.strip()
    install = f"pip install 'mllm-jax[tpu]' (here: pip install '{requirement}')"
    require(
        importlib.util.find_spec("libtpu") is not None,
        f"--hardware {hardware.word}: compiling for TPUs needs libtpu, which is not installed: "
        f"{install}",
    )
    have = metadata.version("libtpu")
    pin = re.fullmatch(r"libtpu==([\d.]+)\.\*", requirement)
    require(
        pin is None or have.startswith(f"{pin[1]}."),
        f"--hardware {hardware.word}: libtpu {have} does not belong to JAX {jax.__version__}: "
        f"{install}",
    )
