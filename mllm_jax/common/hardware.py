"""Lists the chips that steps run on, with their published rates: for MFU, rooflines and memory."""

import re
from typing import Literal, NamedTuple

Platform = Literal["tpu", "gpu", "cpu"]


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


# TPU memory: 16, 95 and 32 GB are published; usable is what libtpu's compiler says it may fill
# ("of 15.75G hbm"). TPU links: published per chip in both directions together (400, 1,200 and
# 800 GB/s), here one way. NVLink likewise: 900 GB/s are 450 each way. FLOP/s of NVIDIA's data
# sheets are with sparsity (H100 SXM: 1,979e12), here halved. The L4's link is PCIe.
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
        *(312e12, 80 * _GB, 2039e9, 300e9, 1, _NVIDIA + "A100 80GB SXM"),
    ),
    "h100-pcie": Chip("gpu", "H100 PCIe", r"H100 PCIe", 756e12, source=_NVIDIA + "H100 PCIe"),
    "h100-nvl": Chip("gpu", "H100 NVL", r"H100 NVL", 835e12, source="NVIDIA H100 NVL brief"),
    "h100": Chip(
        *("gpu", "H100", r"H100"),
        *(989e12, 80 * _GB, 3350e9, 450e9, 1, _NVIDIA + "H100 SXM"),
    ),
    "h200": Chip(
        *("gpu", "H200", r"G?H200"),
        *(989e12, 141 * _GB, 4800e9, 450e9, 1, _NVIDIA + "H200 SXM"),
    ),
    "l4": Chip(
        *("gpu", "L4", r"\bL4\b"),
        *(121e12, 24 * _GB, 300e9, 32e9, 1, _NVIDIA + "L4"),
    ),
    "cpu": Chip("cpu", "cpu", r"cpu", None, source="this machine; no rates are published"),
}


def peak_rate(device_kind: str) -> float | None:
    """Published dense bfloat16 FLOP/s of a chip, by jax's `device_kind`; None when unknown."""
    matches = (chip for chip in CHIPS.values() if re.search(chip.pattern, device_kind))
    return next((chip.flops for chip in matches), None)
