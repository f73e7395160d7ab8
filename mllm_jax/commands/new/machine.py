"""Chooses microbatches, remat and number formats for the devices of this machine."""

import dataclasses
import os
import re
from typing import NamedTuple

import jax

from mllm_jax.commands.new.choices import Choice
from mllm_jax.common.hardware import CHIPS, Chip
from mllm_jax.config.stage import Config
from mllm_jax.preflight.hardware import Devices, Hardware
from mllm_jax.preflight.plans import Plans
from mllm_jax.preflight.settings import Setting

GIB = 2**30
USED = 0.8  # of the memory that the formula may fill: it is an estimate
REMATS = ("none", "full")


class Fit(NamedTuple):
    """How a stage is laid out here."""

    rows: Choice
    microbatches: Choice
    remat: Choice
    fits: bool


def describe() -> str:
    """This machine's devices in a few words."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, {memory() / GIB:.0f} GiB each"


def compute_format() -> Choice:
    """The number format of products."""
    if jax.devices()[0].platform == "cpu":
        return Choice("float32", "ours: this machine has no accelerator")
    return Choice("bfloat16", "ours: LLaVA-1.5, pretrain.sh (bf16, float32 master copies)")


def memory() -> int:
    """Bytes of memory of one device."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    return int(devices[0].memory_stats()["bytes_limit"])


def fit(config: Config, rows: Choice) -> Fit:
    """The fewest microbatches, and the least recomputing, with which a stage fits.

    Args:
        config: the stage, with any `microbatches` and `remat`.
        rows: of a batch; they grow to a multiple of the devices.
    """
    count = len(jax.devices())
    total = -(-rows.value // count) * count
    if total != rows.value:
        rows = Choice(total, f"{rows.why}; a multiple of {count} devices")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=total))
    plans = Plans(config, _hardware(), Devices(jax.devices(), True))
    limit = memory()
    each = total // count
    turns = [n for n in range(1, each + 1) if each % n == 0]
    last = None
    for microbatches in turns:
        for remat in REMATS:
            setting = Setting(remat, total, microbatches, plans.configured.split)
            need = plans.memory(setting).total
            last = (microbatches, remat, need)
            if need <= USED * limit:
                return Fit(rows, *_chosen(microbatches, remat, need, limit, total), True)
    assert last is not None
    return Fit(rows, *_chosen(*last, limit, total), False)


def _chosen(
    microbatches: int, remat: str, need: int, limit: int, rows: int
) -> tuple[Choice, Choice]:
    size = f"{need / GIB:.2f} of {limit / GIB:.0f} GiB by preflight's formula"
    why = f"machine: {rows // microbatches} rows at a time take {size}"
    effect = "everything is kept for the backward pass" if remat == "none" else "recomputed, to fit"
    return Choice(microbatches, why), Choice(remat, f"machine: {effect}")


def _hardware() -> Hardware:
    devices = jax.devices()
    kind, platform, count = devices[0].device_kind, devices[0].platform, len(devices)
    known = (name for name, chip in CHIPS.items() if re.search(chip.pattern, kind))
    name = "cpu" if platform == "cpu" else next(known, None)
    if name is not None:
        return Hardware(f"{name}:{count}", name, CHIPS[name], count)
    unknown = Chip(platform, kind, re.escape(kind), None, memory())  # type: ignore[arg-type]
    return Hardware(f"{kind}:{count}", kind, unknown, count)
