"""Measures one setting of a step, or several in turn, best first at the end.

What does not fit in memory by the compiler is said and passed over, and so is the same with more
rows. Every result is a line of JSON on standard output, as it comes.
"""

import json
import sys
import typing
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from mllm_jax.checkpoints import stage_file
from mllm_jax.commands.bench import trace
from mllm_jax.commands.bench.request import SIZED, Request
from mllm_jax.commands.bench.step import measure
from mllm_jax.commands.bench.work import Axes, Work, combinations, from_config, from_size
from mllm_jax.commands.new.machine import memory
from mllm_jax.common.errors import ConfigError, RunError, one_line
from mllm_jax.common.failures import out_of_memory
from mllm_jax.common.folders import check_file, new_folder, write_whole
from mllm_jax.common.log import Log
from mllm_jax.common.markdown import markdown_table
from mllm_jax.config.stage import ComputeConfig

GROWTH = (1, 2, 4)  # the rows of a sweep, as multiples of the first
SPLITS = (1, 2)  # its microbatches


def main(request: Request) -> None:
    """`mllm-jax bench`: times a config's stage, or one of `work.SIZES`.

    Raises:
        ConfigError: a batch that does not fit model or mesh, a name that is not valid.
        RunError: nothing fits in memory.
    """
    if request.json_file is not None:
        check_file(request.json_file)
    works = combinations(*_asked(request))
    if request.several:
        results = _in_turn(request, works)
        print(f"\n{_table(results)}", end="", file=sys.stderr)
    else:
        with ExitStack() as stack:
            profile = request.profile and stack.enter_context(new_folder(request.profile))
            results = [measure(works[0], request.steps, profile=profile or None)]
            results = [_named(request, results[0])]
        print(json.dumps(results[0]))
        if request.profile is not None:
            print(f"\n{trace.table(results[0]['costliest'])}", end="", file=sys.stderr)
    if request.json_file is not None:
        lines = "".join(json.dumps(result) + "\n" for result in results)
        write_whole(Path(request.json_file), lines)


def _asked(request: Request) -> tuple[Work, Axes]:
    """The work in its first setting, and the settings that are tried."""
    rows = request.batch[0] if request.batch else None
    if request.config is not None:
        config = stage_file.load(request.config, request.overrides)
        first = from_config(config, request.length, rows, request.dtype, None)
    else:
        first = from_size(
            request.size or "",
            request.stage or SIZED["stage"],
            request.length or SIZED["length"],
            rows or SIZED["batch"],
            request.dtype or SIZED["dtype"],
            SIZED["remat"],
            request.lora,
            request.overrides,
        )
    first = first._replace(images=not request.text_only)
    axes = Axes(request.batch, request.microbatches, request.attention, request.remat)
    return first, swept(first, axes) if request.sweep else axes


def swept(work: Work, axes: Axes) -> Axes:
    """Several values of every axis that has none."""
    rows = axes.rows or [work.rows * times for times in GROWTH]
    turns = axes.microbatches or [n for n in SPLITS if all(count % n == 0 for count in rows)]
    return Axes(
        rows,
        turns,
        axes.attention or _names("attention"),
        axes.remat or _names("remat"),
    )


def _names(field: str) -> Sequence[str]:
    """The values that a field of `compute` takes."""
    return typing.get_args(typing.get_type_hints(ComputeConfig)[field])


def _in_turn(request: Request, works: Sequence[Work]) -> list[dict[str, Any]]:
    """The results of what fits, best first."""
    log, limit = Log(), memory()
    log(f"settings: {len(works)}; each is compiled, then {request.steps} steps are timed")
    results: list[dict[str, Any]] = []
    too_large: list[Work] = []
    for work in works:
        setting = _setting(work)
        if any(_needs_more(work, other) for other in too_large):
            log(f"{setting}: passed over, since it did not fit with fewer rows")
            continue
        try:
            result = _named(request, measure(work, request.steps, limit))
        except (RunError, ConfigError) as error:
            log(f"{setting}: passed over: {one_line(str(error))}")
            too_large += [work] if isinstance(error, RunError) else []
            continue
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            log(f"{setting}: passed over: out of device memory")
            too_large.append(work)
            continue
        finally:
            jax.clear_caches()
        print(json.dumps(result), flush=True)
        log(f"{setting}: {result['tokens_per_second']:,.0f} tokens/s")
        results.append(result)
    if not results:
        raise RunError("bench: no setting could be measured; the lines above say why")
    return sorted(results, key=lambda result: -result["tokens_per_second"])


def _setting(work: Work) -> str:
    turns = f"{work.microbatches} microbatch" + ("es" if work.microbatches > 1 else "")
    names = f"attention {work.compute.attention}, remat {work.compute.remat}"
    return f"{work.rows} x {work.length:,} tokens, {turns}, {names}"


def _needs_more(work: Work, other: Work) -> bool:
    """Whether this is the other with as many rows or more."""
    return work.rows >= other.rows and work == other._replace(rows=work.rows)


def _named(request: Request, result: dict[str, Any]) -> dict[str, Any]:
    size = request.size or Path(request.config or "").stem
    stage = "config" if request.config else request.stage or SIZED["stage"]
    named = {"size": size, "stage": stage, "lora": request.lora}
    return {**named, "overrides": " ".join(request.overrides), **result}


def _table(results: Sequence[dict[str, Any]]) -> str:
    best = results[0]["tokens_per_second"]
    head = (
        "attention",
        "remat",
        "rows",
        "microbatches",
        "s a step",
        "tokens/s",
        "of the best",
        "GiB",
    )
    rows = [
        (
            result["attention"],
            str(result["remat"]),
            f"{result['batch']:,}",
            f"{result['microbatches']:,}",
            f"{result['median_step_seconds']:.4g}",
            f"{result['tokens_per_second']:,.0f}",
            f"{result['tokens_per_second'] / best:.0%}",
            f"{result['program_gib']:.2f}",
        )
        for result in results
    ]
    return markdown_table(head, rows)
