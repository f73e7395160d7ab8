"""Trains and evaluates what is left of a sweep, beside any number of processes that do the same.

A process claims a stage, or the evaluation of a run, by the lock of a file in OUT/claims. The
system releases it when the process ends, however that happens, and another one continues the stage
at its last checkpoint.

    OUT/stages/NAME-DIGEST/        run folder of a stage
    OUT/stages/NAME-DIGEST.json    summary of a finished one
    OUT/evaluation/RUN/            results folder of a run; OUT/hf/RUN its export
    OUT/runs/RUN.json              what a finished run consists of
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.commands.recipe import results
from mllm_jax.commands.recipe.stages import train_stage
from mllm_jax.commands.recipe.summary import Summary
from mllm_jax.commands.recipe.tree import EVALUATION
from mllm_jax.commands.sweep.plan import STAGES, Plan, Row
from mllm_jax.common import interrupts
from mllm_jax.common.errors import Interrupted, Preempted, RunError, cut
from mllm_jax.common.json_file import write_json
from mllm_jax.common.locks import claiming
from mllm_jax.config.recipe import RecipeConfig

CLAIMS, RUNS = "claims", "runs"
WAIT = 1.0  # seconds between two looks at what other processes have finished


class Unit(NamedTuple):
    """A piece of work that one process does."""

    name: str  # "stage align-3f..." or "run 20-latxa"
    needs: tuple[str, ...]  # names of units
    is_done: Callable[[], bool]
    do: Callable[[], None]


def work(
    plan: Plan, recipe: RecipeConfig, out: Path, devices: Sequence[Any] | None
) -> RunError | None:
    """Does all units of a plan that are not done; waits for those that other processes do.

    Args:
        plan: what is selected of the sweep.
        recipe: with the sections `evaluate` and `export` of all runs.
        out: folder of the sweep.
        devices: the mesh's; all there are when None.

    Returns:
        What to raise when all is done that can be: see `share_work`.
    """
    return share_work(list(_units(plan, recipe, out, devices)), out / CLAIMS)


def share_work(units: Sequence[Unit], claims: Path) -> RunError | None:
    """Does units of work beside other processes, each unit in one of them.

    Args:
        units: each after those that it needs.
        claims: folder of the lock files.

    Returns:
        What to raise: units failed, as by a loss that is not finite. All that does not need them is
        done.
    """
    claims.mkdir(parents=True, exist_ok=True)
    left = {unit.name: unit for unit in units}
    failed: dict[str, RunError] = {}
    told: set[str] = set()
    while left:
        if _do_one(left, failed, claims) or not left:
            continue
        others = ", ".join(unit.name for unit in left.values() if not _waits(unit, left))
        if others not in told:
            told.add(others)
            print(f"others work on {cut(others, 200)}; waiting", flush=True)
        interrupts.check()
        time.sleep(WAIT)
    if not failed:
        return None
    name, error = next(iter(failed.items()))
    return RunError(f"{len(failed)} stages or runs failed or lack one that did: {name}: {error}")


def is_finished(row: Row, out: Path) -> bool:
    """Whether a row's model is trained, evaluated and exported."""
    return _record(row, out).is_file()


def _record(row: Row, out: Path) -> Path:
    return out / RUNS / f"{row.name}.json"


def _do_one(left: dict[str, Unit], failed: dict[str, RunError], claims: Path) -> bool:
    """Does the first unit that is ready and not claimed; whether there was one.

    Units that are done, or that need one that failed here, are taken out.
    """
    for name, unit in list(left.items()):
        if any(need in failed for need in unit.needs):
            failed[name] = failed[next(need for need in unit.needs if need in failed)]
            del left[name]
            continue
        if unit.is_done():
            del left[name]
            continue
        if _waits(unit, left):
            continue
        with claiming(claims / name.replace("/", "+")) as mine:
            if not mine or unit.is_done():
                continue
            try:
                unit.do()
            except (Interrupted, Preempted):
                raise
            except RunError as error:
                print(f"{name}: {error}", flush=True)
                failed[name] = error
            del left[name]
            return True
    return False


def _waits(unit: Unit, left: dict[str, Unit]) -> bool:
    return any(need in left for need in unit.needs)


def _units(
    plan: Plan, recipe: RecipeConfig, out: Path, devices: Sequence[Any] | None
) -> Iterator[Unit]:
    """A unit for each stage and row; those of the first row first."""
    listed: set[str] = set()
    for row in plan.rows:
        leaf = plan.tree.variants.get(row.name)
        for stage in plan.tree.path(leaf) if leaf is not None else ():
            if stage not in listed:
                listed.add(stage)
                yield _stage(plan, stage, out, devices)
        yield _row(plan, row, recipe, out)


def _stage(plan: Plan, name: str, out: Path, devices: Sequence[Any] | None) -> Unit:
    tree, config, start = plan.tree.only([name]), plan.stages[name], plan.tree.parents[name]
    before = None if start is None else out / STAGES / start

    def summary() -> Summary:
        return Summary(out / STAGES / f"{name}.json", tree)

    def do() -> None:
        opened = summary()
        if before is not None:
            opened.check_start(name, config, before)
        train_stage(name, config, before, opened, devices)

    needs = () if start is None else (f"stage {start}",)
    return Unit(f"stage {name}", needs, lambda: summary().has_stage(name), do)


def _row(plan: Plan, row: Row, recipe: RecipeConfig, out: Path) -> Unit:
    leaf = plan.tree.variants.get(row.name)
    record = _record(row, out)

    def do() -> None:
        about: dict[str, Any] = {"run": row.run.name, "points": dict(row.run.points)}
        record.parent.mkdir(parents=True, exist_ok=True)
        if leaf is None:
            assert row.run.model is not None
            results.evaluate_model(plan.evaluate, row.run.model, out / EVALUATION / row.name)
            about["model"] = row.run.model
        else:
            tree = plan.tree.only([row.name])._replace(variants={row.name: leaf})
            summary = Summary(out / STAGES / f"{leaf}.json", tree)
            results.evaluate(plan.evaluate, tree, plan.stages, out, summary)
            results.finish(recipe, tree, plan.stages, out, summary)
            about["overrides"] = dict(row.run.overrides)
            about["stages"] = tree.path(leaf)
            about["model"] = f"{STAGES}/{leaf}"
        write_json(record, about)

    needs = () if leaf is None else (f"stage {leaf}",)
    return Unit(f"run {row.name}", needs, lambda: is_finished(row, out), do)
