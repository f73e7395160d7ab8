"""Estimates whether a stage fits on hardware that is not here, and how fast it can be.

From shapes alone: no weights, no data, no tokenizer. libtpu compiles the real train step for TPUs
on any machine, JAX for this machine's devices. For GPUs that are not here the numbers are estimates
by formula, and are labelled so. When a stage does not fit: the nearest settings that do. When it
does: fewer microbatches that do as well.
"""

import json
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.hardware import Chip
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import Config
from mllm_jax.preflight import hardware, hlo, memory, roofline, table
from mllm_jax.preflight import plans as planning
from mllm_jax.preflight.memory import Share
from mllm_jax.preflight.plans import Plans, Program
from mllm_jax.preflight.roofline import Work
from mllm_jax.preflight.settings import Setting, fewer_microbatches, near, whole_rows
from mllm_jax.training import flops

SHOWN = 3  # settings that fit
TRIED = 4  # compilations to find them
TRIED_FEWER = 2  # compilations to find fewer microbatches
NEARLY = 0.97  # of the memory: what an estimate may fill to be worth a compilation
LARGEST = 6  # collectives listed


def main(config: Config, word: str, as_json: bool = False) -> None:
    """`mllm-jax preflight`: prints a table, or with `as_json` one object, on stdout.

    Args:
        config: the stage.
        word: the hardware, for example "v5e:16x16".
        as_json: for programs.

    Raises:
        ConfigError: unknown hardware, no compiler for it, or a stage that cannot be laid out on it.
    """
    result = estimate(config, word)
    print(json.dumps(result) if as_json else table.render(result))


def estimate(config: Config, word: str) -> dict[str, Any]:
    """What `preflight` prints, as plain numbers; the names are those of `--json`."""
    target = hardware.parse(word)
    devices = hardware.find_devices(target)
    plans = Plans(config, target, devices)
    _check_rows(plans)
    configured = plans.configured
    program = None
    if devices.compiles:
        with _progress(f"compiling the train step for {word}"):
            program = plans.compiled(configured)
    result = _describe(plans, configured, program)
    if result["memory"]["fits"] is False:
        result["nearest"] = _nearest(plans, configured)
    else:
        result["fewer_microbatches"] = _fewer(plans, configured, result)
    return result


def _check_rows(plans: Plans) -> None:
    configured = plans.configured
    try:
        plans.check_rows(configured)
    except ConfigError as error:
        parts = configured.split.data * configured.split.fsdp
        rows, microbatches = whole_rows(configured.rows, configured.microbatches, parts)
        flags = configured._replace(rows=rows, microbatches=microbatches).flags(configured)
        if not flags:  # the rows are not what is wrong
            raise
        raise ConfigError(f"{error}; for example {flags}") from error


# ------------------------------------------------------------------------------------------- result


def _describe(plans: Plans, setting: Setting, program: Program | None) -> dict[str, Any]:
    target, formula = plans.hardware, plans.memory(setting)
    limit = plans.limit
    total = formula.total if program is None else program.total
    traffic = sent(plans, setting) if program is None or program.refused else program.sent
    asked = work(plans, setting, sum(kind["bytes"] for kind in traffic.values()))
    rate = target.chip.flops
    bound = roofline.bound(asked, target.chip, rate, target.count)
    return {
        "hardware": target.word,
        "chip": _chip(target.chip),
        "chips": target.count,
        "basis": plans.basis,
        "versions": planning.versions(),
        "compile_seconds": round(program.seconds, 1) if program is not None else None,
        "compiler_flags": None if program is None else dict(program.flags),
        "unknown_compiler_flags": [] if program is None else list(program.unknown_flags),
        "setting": {**setting._replace(split=None)._asdict(), "mesh": setting.split._asdict()}
        | plans.shape,
        "memory": {
            "formula": formula._asdict() | {"temporary": formula.temporary, "total": formula.total},
            "compiler": None if program is None else program.memory,
            "refused": None if program is None else program.refused,
            "total": total,
            "host": formula.host if program is None else program.host,
            "limit": limit,
            "margin": limit - total,
            "fits": total <= limit and not (program is not None and program.refused),
        },
        "collectives": traffic,
        "largest_collectives": [] if program is None else _largest(program.collectives),
        "work": asked._asdict(),
        "peak_flops_per_chip": rate,
        "bound": None if bound is None else bound._asdict(),
        "nearest": None,
        "fewer_microbatches": None,
    }


def _chip(chip: Chip) -> dict[str, Any]:
    return chip._asdict() | {"cores": chip.cores and chip.cores._asdict()}


def _largest(operations: list[hlo.Collective]) -> list[dict[str, Any]]:
    ordered = sorted(operations, key=lambda one: -one.sent)[:LARGEST]
    return [one._asdict() | {"sent": one.sent} for one in ordered]


# ----------------------------------------------------------------------------------- what it takes


def sent(plans: Plans, setting: Setting) -> dict[str, dict[str, int]]:
    """Bytes one device sends in a step, by formula, in the form of `hlo.summary`."""
    setup, share = plans.laid_out(setting.split), plans.share(setting)
    size = memory.width(setup.model.compute)
    trained = setup.abstract.trainable
    kinds = roofline.sent_by_formula(
        setting.split,
        setting.microbatches,
        plans.weight_bytes() // share.tensor,
        plans.weight_bytes(trained) // share.tensor,
        memory.float32_bytes({p: x for p, x in setup.params.items() if p in trained}),
        share.rows * share.length * plans.language.width * size,
        plans.language.layers,
        _keys(plans, setting, share),
    )
    return {kind: {"operations": 0, "bytes": count} for kind, count in kinds.items()}


def _keys(plans: Plans, setting: Setting, share: Share) -> tuple[int, int]:
    """Bytes of a layer's keys and values that are gathered, and of gradients that are scattered."""
    c, compute = plans.language, plans.config.compute
    numbers = share.rows * share.keys * 2 * c.kv_heads // share.tensor * c.head_dim
    passes = 1 if setting.remat in ("none", "dots") else 2
    reduced = 4 if "float32" in (compute.reduce, compute.compute) else 2
    return numbers * passes * memory.width(compute), numbers * reduced


def work(plans: Plans, setting: Setting, sent: int) -> Work:
    """What a step asks of the hardware; `sent`: bytes over one device's links.

    Memory is read and written at least for: the weights once a pass, what is kept for the backward
    pass, and the optimizer's state.
    """
    config, data = plans.config, plans.config.data
    setup, share = plans.laid_out(setting.split), plans.share(setting)
    trained = setup.abstract.trainable
    images = setting.rows * data.image_slots if config.model.patches else 0
    rank = config.adapter.rank if config.adapter is not None else 0
    useful = flops.flops_per_step(config.model, trained, setting.rows, data.length, images, rank)
    again = (
        _recomputed(config, setting, trained, rank)
        if setting.remat in ("attention", "full", "offload")
        else 0.0
    )
    bytes_now = plans.memory(setting)
    weights = plans.weight_bytes() // share.tensor
    passes = 2 if setting.remat == "none" else 3
    moved = (
        share.microbatches * passes * weights
        + 2 * share.microbatches * bytes_now.activations
        + 2 * (bytes_now.trainable + bytes_now.moments)
        + bytes_now.gradients
    )
    return Work(useful, useful + again, moved, sent, setting.rows * data.length)


def _recomputed(config: Config, setting: Setting, trained: Collection[str], rank: int) -> float:
    """FLOPs of the forward passes that remat "full" takes twice: layers, not the head."""
    language, vision = config.model.language, config.model.vision
    assert language is not None
    rows, length = setting.rows, config.data.length
    alone = flops.flops_per_step(ModelConfig(language=language), (), rows, length, 0)
    again = alone - 2 * rows * length * language.vocab * language.width
    images = 0
    if vision is not None and any(path.startswith("vision/") for path in trained):
        images = rows * config.data.image_slots
        again += flops.flops_per_step(ModelConfig(vision=vision), (), 0, 0, images)
    of_layers = [path for path in trained if "/layers/" in path]
    return again + flops.adapters_forward(config.model, of_layers, rows, length, images, rank)


# ---------------------------------------------------------------------------------- what would fit


def _nearest(plans: Plans, configured: Setting) -> list[dict[str, Any]]:
    """At most SHOWN settings that fit, no two of the same kinds of change, nearest first."""
    kinds: set[tuple[str, ...]] = set()
    fitting: list[dict[str, Any]] = []
    tried = 0
    candidates = near(configured, plans.hardware.count)
    _say(f"it does not fit; looking through {len(candidates)} settings near it")
    for setting in candidates:
        if len(fitting) == SHOWN or tried == TRIED:
            break
        if setting.changed(configured) in kinds or not plans.possible(setting):
            continue
        if plans.state_bytes(setting.split) > plans.limit:
            continue
        if plans.memory(setting).total > NEARLY * plans.limit:
            continue
        tried += plans.compiles
        one = _tried(plans, setting, configured)
        if one is not None:
            kinds.add(setting.changed(configured))
            fitting.append(one)
    return fitting


def _tried(plans: Plans, setting: Setting, configured: Setting) -> dict[str, Any] | None:
    """A setting that fits by formula, compiled where that is possible; None if it does not fit."""
    flags = setting.flags(configured)
    total, traffic = plans.memory(setting).total, sent(plans, setting)
    if plans.compiles:
        with _progress(f"compiling with {flags}"):
            program = plans.compiled(setting)
        if program.refused or program.total > plans.limit:
            return None
        total, traffic = program.total, program.sent
    return {
        "flags": flags,
        "total": total,
        "margin": plans.limit - total,
        "sent": sum(kind["bytes"] for kind in traffic.values()),
        "compiled": plans.compiles,
    }


def _fewer(plans: Plans, configured: Setting, result: dict[str, Any]) -> dict[str, Any] | None:
    """The fewest microbatches that fit, if they send less over the links; None if none do.

    Each microbatch gathers all weights once more for either pass.
    """
    now = sum(kind["bytes"] for kind in result["collectives"].values())
    if not now:  # one device, or a mesh without gathering
        return None
    fitting = [
        setting
        for setting in fewer_microbatches(configured)
        if plans.memory(setting).total <= NEARLY * plans.limit
    ]
    for setting in fitting[:TRIED_FEWER]:
        one = _tried(plans, setting, configured)
        if one is not None and one["sent"] < now:
            return one
    return None


# ----------------------------------------------------------------------------------------- progress


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Prints to stderr what is running, and every 15 seconds for how long."""
    start, done = time.perf_counter(), threading.Event()

    def tick() -> None:
        while not done.wait(15):
            _say(f"{what}: {time.perf_counter() - start:.0f} s")

    _say(what)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()


def _say(what: str) -> None:
    print(f"preflight: {what}", file=sys.stderr, flush=True)
