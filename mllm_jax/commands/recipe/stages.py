"""Trains a recipe's stages, each from the weights of the one it starts from; then the results.

    align.yaml -> OUT/align -> instruct.yaml -> OUT/instruct -> OUT/evaluation, OUT/hf,
    OUT/summary.json, OUT/report.html

Everything that can be wrong is looked at before the first stage starts. The same command
continues a recipe that was stopped: finished stages are skipped, an unfinished one is resumed. A
stage that several others start from is trained once.

Several processes train and answer the evaluation's questions together; process 0 alone compares the
weights, exports and writes the summary.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.fingerprints import Module, compare_modules
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.recipe import results
from mllm_jax.commands.recipe.checks import check_folders, check_questions, check_stages
from mllm_jax.commands.recipe.files import Recipe, build_stages, load_recipe, shapes
from mllm_jax.commands.recipe.summary import Summary
from mllm_jax.commands.recipe.tree import Tree
from mllm_jax.commands.report import pages
from mllm_jax.common.errors import require
from mllm_jax.common.folders import exclusive
from mllm_jax.config.stage import Config
from mllm_jax.distributed import processes
from mllm_jax.generation.samples import sampler
from mllm_jax.training import loop, run_folder
from mllm_jax.training.heldout import is_complete
from mllm_jax.training.optimizer import assign


def run(
    path: str | Path,
    out: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Path:
    """Trains the stages of a recipe file, evaluates the models they end in and exports them.

    Args:
        path: the recipe file; its stage files are looked for beside it.
        out: folder of everything that is made; default: the file's own `out`.
        devices: the mesh's devices in every stage; all there are when None.
        overrides: of the recipe, of every stage or of one, see `recipe.overrides`.
        only: names of stages and variants; what these start from is trained too, nothing else.

    Returns:
        The folder: a run folder per stage, `evaluation/`, `hf/`, `summary.json` (times, modules,
        versions) and `report.html`.

    Raises:
        ConfigError: a file is missing or wrong, stages do not fit each other, or OUT holds other
            runs.
    """
    path = Path(path)
    recipe = load_recipe(path, overrides)
    selected = recipe.tree.only(only) if only else recipe.tree
    out = Path(out if out is not None else recipe.config.out)
    with exclusive(out) if processes.is_first() else nullcontext():
        return _run(recipe, selected, build_stages(recipe, out), out, devices)


def _run(
    recipe: Recipe,
    selected: Tree,
    every: Mapping[str, Config],
    out: Path,
    devices: Sequence[Any] | None,
) -> Path:
    """Trains the selected ones of all stages."""
    summary = Summary(out / "summary.json", recipe.tree)
    stages = {name: every[name] for name in selected.files}
    check_folders(stages, selected)
    checked = check_stages(stages, selected, devices)
    for name in checked.pending:
        _check_followers(name, recipe.tree, every)
    for name, config in stages.items():
        start = selected.parents[name]
        if start is not None and start not in checked.pending:
            summary.check_start(name, config, Path(stages[start].out))
    results.check(selected, out, checked.pending)
    if recipe.config.export is not None:
        results.check_exports(stages, selected)
    wanting = results.unanswered(recipe.config, selected, out)
    section = recipe.config.evaluate
    if section is not None and wanting:
        results.check_devices(section, {stage: stages[stage] for stage in wanting})
        if processes.is_first():
            templates = {stage: checked.templates[stage] for stage in wanting}
            check_questions(section, stages, templates, selected)
    for name, config in stages.items():
        start = selected.parents[name]
        before = None if start is None else Path(stages[start].out)
        train_stage(name, config, before, summary, devices)
    if section is not None:
        results.evaluate(section, selected, stages, out, summary)
    if processes.is_first():
        results.finish(recipe.config, selected, stages, out, summary)
        pages.run(out)
    return out


# ------------------------------------------------------------------------------------------- stages


def train_stage(
    name: str,
    config: Config,
    before: Path | None,
    summary: Summary,
    devices: Sequence[Any] | None,
) -> None:
    """Trains what is left of a stage, and prints what that did to its modules.

    Args:
        name, config: of the stage.
        before: the run that it starts from; None for the first one.
        summary: gets the stage.
        devices: the mesh's; all there are when None.
    """
    run = Path(config.out)
    # a stage counted in epochs is left to `train` to decide: it continues from its last step, and
    # may have nothing to do
    finished = is_complete(config, config.train.steps)
    # process 0 decides: the others may see a shared folder as it was a moment ago
    finished = bool(processes.of_first(finished))
    if processes.of_first(finished and summary.has_stage(name)):
        _say(f"stage {name}: finished before, {run}")
        return
    start = time.perf_counter()
    if not finished:
        _say(f"stage {name} -> {run}")
        if processes.is_first():
            summary.begin_stage(name, before)
        loop.train(config, resume="auto", devices=devices, sampler=sampler)
    if not processes.is_first():
        return
    modules = module_table(config)
    _print_modules(name, modules)
    summary.add_stage(name, config, time.perf_counter() - start, modules)


def _say(text: str) -> None:
    if processes.is_first():
        print(text, flush=True)


def _check_followers(name: str, tree: Tree, stages: Mapping[str, Config]) -> None:
    """Refuses to train a stage (again) whose weights others have begun with."""
    for later in tree.after(name):
        require(
            not (Path(stages[later].out) / "config.yaml").is_file(),
            f"{later}: out={stages[later].out}: was trained from weights of {name} that are no "
            f"longer there; delete it and rerun the recipe, or put OUT/{name} back",
        )


# ------------------------------------------------------------------------------------------ modules


def module_table(config: Config) -> list[Module]:
    """What a finished stage did to each module, read from its weights before and after.

    Raises:
        RuntimeError: a frozen parameter is not what it was before.
    """
    all_shapes, init = shapes(config.model), config.init
    before = {}
    if init.weights is not None:
        source = open_model(init.weights)
        drawn = run_folder.drawn_paths(config, all_shapes, source.config.model)
        before = source.leaves({p: x for p, x in all_shapes.items() if p not in drawn}, init.fresh)
    after = open_model(config.out).leaves(all_shapes)
    owner = assign(all_shapes, config.optimizer.parts)
    trained = {path: config.optimizer.parts[part].train for path, part in owner.items()}
    if config.adapter is not None:  # read with the adapters merged into them
        trained |= dict.fromkeys(config.adapter.targets(all_shapes), True)
    return compare_modules(before, after, trained)


def _print_modules(stage: str, modules: list[Module]) -> None:
    print(f"\n{stage + ':':<14} {'parameters':>15}  {'trained':<8} {'before':<11} after")
    for m in modules:
        print(f"  {m.module:<12} {m.parameters:>15,}  {m.trained:<8} {m.before:<11} {m.after}")
    print(flush=True)
