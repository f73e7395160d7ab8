"""Runs a sweep: all runs are planned and checked, then trained and evaluated, then compared.

    sweep.yaml -> runs -> plan (a tree of stages) -> checks -> work -> table, figures, pairs

The same command continues a sweep that was stopped, and several processes may work on one folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.recipe import results
from mllm_jax.commands.recipe.checks import (
    check_folders,
    check_prompts,
    check_questions,
    check_stages,
    naming,
)
from mllm_jax.commands.sweep import record
from mllm_jax.commands.sweep.contents import Digests
from mllm_jax.commands.sweep.dry_run import describe
from mllm_jax.commands.sweep.plan import Plan, load_runs, make_plan, naming_run
from mllm_jax.commands.sweep.runs import read_runs, select
from mllm_jax.commands.sweep.table import write_tables
from mllm_jax.commands.sweep.work import work
from mllm_jax.common import compilation_cache
from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config import loading
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.sweep import SweepConfig


def run(
    path: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    dry_run: bool = False,
    devices: Sequence[Any] | None = None,
) -> Path:
    """Trains, evaluates and compares the runs of a sweep file.

    Args:
        path: the sweep file; its recipe is looked for beside it.
        out: folder of everything that is made; default: the file's own `out`.
        only: names of runs; what these need is trained, nothing else.
        dry_run: print what would be done, and do nothing.
        devices: the mesh's devices in every stage; all there are when None.

    Returns:
        The folder: `stages/`, `evaluation/`, `runs/`, and the results.

    Raises:
        ConfigError: a file is missing or wrong, any of the runs is not valid, or OUT holds another
            sweep.
        RunError: stages that failed; the others are done.
    """
    path = Path(path)
    sweep = load_sweep(path)
    runs = read_runs(sweep)
    names = select(runs, only)
    out = Path(out if out is not None else sweep.out)
    loaded = load_runs(sweep, path.parent / sweep.recipe, runs)
    if dry_run:
        plan = make_plan(loaded, runs, out).only(names)
        print(describe(plan, path, out), end="", flush=True)
        return out
    compilation_cache.enable()
    plan = make_plan(loaded, runs, out, Digests())
    record.check(out, plan)
    selected = plan.only(names)
    recipe = loaded[0].recipe.config
    _check(selected, recipe, devices)
    record.write(out, plan)
    failure = work(selected, recipe, out, devices)
    write_tables(plan, sweep, out)
    if failure is not None:
        raise failure
    return out


def load_sweep(path: Path) -> SweepConfig:
    """A sweep file.

    Raises:
        ConfigError: it is not valid, or a file of another kind.
    """
    keys = read_yaml(path)
    require(
        "stages" not in keys,
        f"{path}: a recipe, where a sweep file is expected; mllm-jax recipe takes it",
    )
    return loading.build(SweepConfig, keys)


def _check(plan: Plan, recipe: RecipeConfig, devices: Sequence[Any] | None) -> None:
    """Everything that can be wrong with the selected runs, before the first one starts."""
    try:
        check_folders(plan.stages, plan.tree)
        checked = check_stages(plan.stages, plan.tree, devices)
        if recipe.export is not None:
            results.check_exports(plan.stages, plan.tree)
        results.check_devices(plan.evaluate, plan.stages)
        leaves = set(plan.tree.variants.values())
        templates = {leaf: checked.templates[leaf] for leaf in leaves}
        check_questions(plan.evaluate, plan.stages, templates, plan.tree)
    except ConfigError as error:
        stage, _, _ = str(error).partition(": ")
        users = [row for row, leaf in plan.tree.variants.items() if stage in plan.tree.path(leaf)]
        if not users:
            raise
        raise ConfigError(f"run {users[0]}: {error}") from error
    for row in plan.rows:
        if row.run.model:
            with naming_run(row.name), naming("evaluate"):
                source = open_model(row.run.model)
                check_prompts(plan.evaluate, [(source.files, None, source.config.model)])
