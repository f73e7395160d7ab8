"""Chooses microbatches, remat and number formats for the devices of this machine."""

import dataclasses
import os
import re
from typing import NamedTuple

import jax

from mllm_jax.commands.new.choices import Choice
from mllm_jax.common.hardware import CHIPS, Chip
from mllm_jax.config.stage import Config
from mllm_jax.preflight import search
from mllm_jax.preflight.hardware import Devices, Hardware
from mllm_jax.preflight.plans import Plans
from mllm_jax.preflight.search import Tried

GIB = 2**30
USED = 0.8  # of the memory that the formula may fill: it is an estimate
KEPT = {  # compute.remat -> what of a layer is kept for the backward pass
    "none": "everything is kept for the backward pass",
    "dots": "products are kept for the backward pass, the rest is computed again, to fit",
    "attention": "attention is kept for the backward pass, the rest is computed again, to fit",
    "full": "layers are computed again in the backward pass, to fit",
}


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
    """The microbatches and the recomputing with which a stage fits and may be quickest.

    By preflight's formula and the chip's published rates; nothing is compiled or timed.

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
    limit, tried = memory(), search.by_formula(plans)
    fitting = [one for one in tried if one.total <= USED * limit]
    chosen = fitting[0] if fitting else min(tried, key=lambda one: one.total)
    return Fit(rows, *_choices(chosen, limit), bool(fitting))


def _choices(chosen: Tried, limit: int) -> tuple[Choice, Choice]:
    setting = chosen.setting
    size = f"{chosen.total / GIB:.2f} of {limit / GIB:.0f} GiB by preflight's formula"
    count = setting.rows // setting.microbatches
    why = f"machine: {count} {'row' if count == 1 else 'rows'} at a time take {size}"
    effect = KEPT[setting.remat]
    return Choice(setting.microbatches, why), Choice(setting.remat, f"machine: {effect}")


def _hardware() -> Hardware:
    devices = jax.devices()
    kind, platform, count = devices[0].device_kind, devices[0].platform, len(devices)
    known = (name for name, chip in CHIPS.items() if re.search(chip.pattern, kind))
    name = "cpu" if platform == "cpu" else next(known, None)
    if name is not None:
        return Hardware(f"{name}:{count}", name, CHIPS[name], count)
    unknown = Chip(platform, kind, re.escape(kind), None, memory())  # type: ignore[arg-type]
    return Hardware(f"{kind}:{count}", kind, unknown, count)
