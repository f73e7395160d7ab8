"""Gives XLA's compiler the options that were tested for a kind of chip.

By itself the compiler of some chips waits for every transfer between devices. The options here let
transfers run beside products. Each is kept because the compiled step showed that (what it sends
"overlapped", `mllm_jax/preflight/overlap.py`), at the memory that docs/preflight.md states. They
change when something is computed, never what.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from mllm_jax.common import hardware

Flags = Mapping[str, bool | int | str]  # name of an option of XLA -> value, of its type

NO_FLAGS: Flags = {}
# v5p and v6e wait for every all-gather by default; with these it goes on beside the products of
# several fusions (names as in MaxText's benchmarks/xla_flags_library, CF_FOR_ALL_GATHER). With the
# last one a kernel's gradient is scattered part by part, beside the product that makes it.
BESIDE_PRODUCTS: Flags = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_tpu_decompose_einsum_reduce_scatter": True,
}
# key of hardware.CHIPS -> what its compiler is given, with several devices
PRESETS: dict[str, Flags] = {"v5p": BESIDE_PRODUCTS, "v6e": BESIDE_PRODUCTS}
UNKNOWN = re.compile(r"No such compile option: '?(\w+)'?")


def flags_for(device_kind: str, devices: int, choice: str) -> Flags:
    """The options for a number of devices of a kind.

    Args:
        device_kind: as JAX names it.
        devices: one alone sends nothing and gets no options.
        choice: `compute.compiler_flags`.
    """
    name = hardware.chip_name(device_kind)
    if choice == "none" or devices == 1 or name is None:
        return NO_FLAGS
    return PRESETS.get(name, NO_FLAGS)


def compile_with(lowered: Any, flags: Flags) -> tuple[Any, tuple[str, ...]]:
    """Compiles a lowered function with those of the options that this compiler knows.

    Options come and go with versions of the compiler: one that it does not know is left out, and
    named for the caller to report.

    Returns:
        (compiled, names of the options that were left out).

    Raises:
        jax.errors.JaxRuntimeError: what else the compiler reports.
    """
    rest, refused = dict(flags), []
    while True:
        try:
            return lowered.compile(compiler_options=rest or None), tuple(refused)
        except jax.errors.JaxRuntimeError as error:
            name = UNKNOWN.search(str(error))
            if name is None or name[1] not in rest:
                raise
            del rest[name[1]]
            refused.append(name[1])
