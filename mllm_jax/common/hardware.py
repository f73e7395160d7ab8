"""Lists the chips that steps run on, with their published rates: for MFU, rooflines and memory."""

import re
from typing import Literal, NamedTuple

Platform = Literal["tpu", "gpu", "cpu"]


class GpuCores(NamedTuple):
    """What the compiler reads of an NVIDIA GPU, beside its memory."""

    capability: tuple[int, int]  # CUDA compute capability
    count: int  # streaming multiprocessors
    float32_units: int  # in each
    threads: int  # resident in each at most
    shared_memory: int  # bytes, of each
    l2_cache: int  # bytes
    clock: float  # GHz
    memory: int  # bytes, as the driver reports them
    bandwidth: int  # bytes per second, by the clock and width of the memory bus


class Chip(NamedTuple):
    """One chip as its maker publishes it; None where nothing is published or nothing needs it."""

    platform: Platform
    kind: str  # part of jax's `device_kind`
    pattern: str  # regular expression over `device_kind`; the first chip of the table counts
    flops: float | None  # dense bfloat16 FLOP/s, without sparsity
    memory: int | None = None  # bytes a program can use
    bandwidth: float | None = None  # bytes per second from and to that memory
    links: float | None = None  # bytes per second to other chips, one way, all links together
    axes: int = 1  # numbers in the topology: v5e:16x16 has two
    source: str = ""
    cores: GpuCores | None = None  # of NVIDIA GPUs


_KIB = 2**10
# Source: XLA's descriptions of these GPUs, openxla/xla xla/backends/gpu/target_config/specs
# (a100_sxm_80, h100_sxm, h200, b200), which are what the driver answers on such a machine.
_A100 = GpuCores((8, 0), 108, 64, 2048, 164 * _KIB, 40 * _KIB**2, 1.41, 85100068864, 2039040000000)
_H100 = GpuCores((9, 0), 132, 128, 2048, 228 * _KIB, 50 * _KIB**2, 1.98, 84942979072, 3352320000000)
_H200 = _H100._replace(memory=151397597184, bandwidth=4800000000000)
_B200 = GpuCores((10, 0), 148, 128, 2048, 228 * _KIB, 132644864, 1.965, 191514411008, 7672320000000)

# TPU memory: 16, 95 and 32 GB are published; usable is what libtpu's compiler says it may fill
# ("of 15.75G hbm"). TPU links: published per chip in both directions together (400, 1,200 and
# 800 GB/s), here one way. NVLink likewise: 900 GB/s are 450 each way. FLOP/s of NVIDIA's data
# sheets are with sparsity (H100 SXM: 1,979e12), here halved. The L4's link is PCIe.
# The DGX B200's are for eight: 1,440 GB, 64 TB/s, NVLink 14.4 TB/s, 72e15 FLOP/s in FP8 (sparse).
_GIB, _GB = 2**30, 10**9
_CLOUD, _NVIDIA = "cloud.google.com/tpu/docs/", "NVIDIA data sheet, "
_V5E, _V5P, _V6E = (int(size * _GIB) for size in (15.75, 95.74, 31.25))
CHIPS: dict[str, Chip] = {
    "v5e": Chip(
        *("tpu", "TPU v5 lite", r"TPU v5 ?lite|TPU v5e"),
        *(197e12, _V5E, 819e9, 200e9, 2, _CLOUD + "v5e"),
    ),
    "v5p": Chip("tpu", "TPU v5", r"TPU v5", 459e12, _V5P, 2765e9, 600e9, 3, _CLOUD + "v5p"),
    "v6e": Chip("tpu", "TPU v6 lite", r"TPU v6", 918e12, _V6E, 1600e9, 400e9, 2, _CLOUD + "v6e"),
    "v4": Chip("tpu", "TPU v4", r"TPU v4", 275e12, source=_CLOUD + "v4"),
    "a100": Chip(
        *("gpu", "A100", r"A100"),
        *(312e12, 80 * _GB, 2039e9, 300e9, 1, _NVIDIA + "A100 80GB SXM", _A100),
    ),
    "h100-pcie": Chip("gpu", "H100 PCIe", r"H100 PCIe", 756e12, source=_NVIDIA + "H100 PCIe"),
    "h100-nvl": Chip("gpu", "H100 NVL", r"H100 NVL", 835e12, source="NVIDIA H100 NVL brief"),
    "h100": Chip(
        *("gpu", "H100", r"H100"),
        *(989e12, 80 * _GB, 3350e9, 450e9, 1, _NVIDIA + "H100 SXM", _H100),
    ),
    "h200": Chip(
        *("gpu", "H200", r"G?H200"),
        *(989e12, 141 * _GB, 4800e9, 450e9, 1, _NVIDIA + "H200 SXM", _H200),
    ),
    "b200": Chip(
        *("gpu", "B200", r"\bB200"),
        *(2250e12, 180 * _GB, 8000e9, 900e9, 1, _NVIDIA + "DGX B200", _B200),
    ),
    "l4": Chip(
        *("gpu", "L4", r"\bL4\b"),
        *(121e12, 24 * _GB, 300e9, 32e9, 1, _NVIDIA + "L4"),
    ),
    "cpu": Chip("cpu", "cpu", r"cpu", None, source="this machine; no rates are published"),
}


def chip_name(device_kind: str) -> str | None:
    """The key of CHIPS, by jax's `device_kind`; None for a chip that is not listed."""
    matches = (name for name, chip in CHIPS.items() if re.search(chip.pattern, device_kind))
    return next(matches, None)


def peak_rate(device_kind: str) -> float | None:
    """Published dense bfloat16 FLOP/s of a chip, by jax's `device_kind`; None when unknown."""
    name = chip_name(device_kind)
    return None if name is None else CHIPS[name].flops
