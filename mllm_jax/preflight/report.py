"""Estimates whether a stage fits on hardware that is not here, and how fast it can be.

From shapes alone: no weights, no data, no tokenizer. libtpu compiles the real train step for TPUs
on any machine, JAX for this machine's devices. For GPUs that are not here the numbers are estimates
by formula, and are labelled so. When a stage does not fit: the nearest settings that do. When it
does: a quicker setting that fits as well.
"""

import json
from typing import Any

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.hardware import Chip
from mllm_jax.config.stage import Config
from mllm_jax.preflight import hardware, hlo, search, table
from mllm_jax.preflight import plans as planning
from mllm_jax.preflight.plans import Plans, Program
from mllm_jax.preflight.progress import progress
from mllm_jax.preflight.settings import Setting, whole_rows
from mllm_jax.preflight.work import bound, sent, work

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
        with progress(f"compiling the train step for {word}"):
            program = plans.compiled(configured)
    result = _describe(plans, configured, program)
    if result["memory"]["fits"] is False:
        result["nearest"] = search.nearest(plans)
    else:
        result["quicker"] = search.quicker(plans)
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
    fastest = bound(plans, asked)
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
            "peak": None if program is None else program.peak,
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
        "peak_flops_per_chip": target.chip.flops,
        "bound": None if fastest is None else fastest._asdict(),
        "nearest": None,
        "quicker": None,
    }


def _chip(chip: Chip) -> dict[str, Any]:
    return chip._asdict() | {"cores": chip.cores and chip.cores._asdict()}


def _largest(operations: list[hlo.Collective]) -> list[dict[str, Any]]:
    ordered = sorted(operations, key=lambda one: -one.sent)[:LARGEST]
    return [one._asdict() | {"sent": one.sent} for one in ordered]
