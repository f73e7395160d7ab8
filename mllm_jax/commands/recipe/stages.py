"""Stages in order, each from the last one's weights, then evaluation and export.

    align.yaml -> OUT/align -> instruct.yaml -> OUT/instruct -> OUT/evaluation, OUT/hf,
    OUT/summary.json, OUT/report.html

Everything that can be wrong is looked at before the first stage starts. The same command
continues a recipe that was stopped: finished stages are skipped, an unfinished one is resumed.

Several processes train together; process 0 alone, on its own devices, compares the weights, answers
the evaluation's questions, exports and writes the summary, while the others have ended.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax

from mllm_jax.checkpoints import stage_file
from mllm_jax.checkpoints.fingerprints import Module, compare_modules
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.convert import conversions
from mllm_jax.commands.recipe.checks import check_folders, check_name, check_questions, check_stages
from mllm_jax.commands.recipe.overrides import NONE, Overrides, sort_overrides
from mllm_jax.commands.report import pages
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.folders import exclusive
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.versions import versions
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import Config, EvaluateConfig, FolderConfig, RecipeConfig
from mllm_jax.distributed import processes
from mllm_jax.evaluation import runner
from mllm_jax.generation.samples import sampler
from mllm_jax.training import loop, run_folder
from mllm_jax.training.heldout import is_complete
from mllm_jax.training.optimizer import assign


def run(
    path: str | Path,
    out: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Trains the stages of a recipe file, evaluates the last one and exports it.

    Args:
        path: the recipe file; its stage files are looked for beside it.
        out: folder of everything that is made; default: the file's own `out`.
        devices: the mesh's devices in every stage; all there are when None.
        overrides: of the recipe, of every stage or of one, see `recipe.overrides`.

    Returns:
        The folder: a run folder per stage, `evaluation/`, `hf/`, `summary.json` (times, modules,
        versions) and `report.html`.

    Raises:
        ConfigError: a file is missing or wrong, stages do not fit each other, or OUT holds other
            runs.
    """
    path = Path(path)
    recipe, sorted_overrides = load_recipe(path, overrides)
    out = Path(out if out is not None else recipe.out)
    with exclusive(out) if processes.is_first() else nullcontext():
        return _run(recipe, load_stages(path, recipe, out, sorted_overrides), out, devices)


def _run(
    recipe: RecipeConfig, stages: dict[str, Config], out: Path, devices: Sequence[Any] | None
) -> Path:
    check_folders(stages)
    checked = check_stages(stages, devices)
    if checked.pending:
        for folder in (out / "evaluation", out / "hf"):
            require(
                not folder.exists(),
                f"{folder}: was made from older weights than the last stage will have; delete it "
                "and rerun the recipe",
            )
    asked = recipe.evaluate is not None and not (out / "evaluation").exists()
    if recipe.evaluate is not None and asked and processes.is_first():
        check_questions(recipe.evaluate, stages, checked.template)
    summary = _Summary(out / "summary.json")
    for name, config in stages.items():
        _train_stage(name, config, summary, devices)
    last = Path(list(stages.values())[-1].out)
    if not processes.is_first():
        return out
    if recipe.evaluate is not None:
        _evaluate(last, recipe.evaluate, out, summary)
    if recipe.export is not None and not (out / "hf").exists():
        with summary.timed("export"):
            conversions.to_hf(last, out / "hf", dtype=recipe.export)
    pages.run(out)
    return out


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[RecipeConfig, Overrides]:
    """A recipe file with the overrides that are its own, and those of its stages.

    Raises:
        ConfigError: the file or an override is not valid.
    """
    names = [Path(file).stem for file in loading.load(RecipeConfig, path).stages]
    sorted_overrides = sort_overrides(overrides, names)
    return loading.load(RecipeConfig, path, sorted_overrides.recipe), sorted_overrides


def load_stages(
    path: Path, recipe: RecipeConfig, out: Path, overrides: Overrides = NONE
) -> dict[str, Config]:
    """The stages by name, checked against each other; `recipe.checks` looks at the disk.

    A stage's output is OUT/<name of its file>; from the second one on its weights are the stage
    before it, whose model it has where its file leaves that out.

    Raises:
        ConfigError: as in `run`.
    """
    stages: dict[str, Config] = {}
    before: str | None = None
    for file in recipe.stages:
        name = Path(file).stem
        check_name(name, list(stages))
        model = _first_model(stages, out / name)
        config = _load_stage(path.parent / file, overrides.of(name), model)
        if before is not None:
            weights = str(out / before)
            config = dataclasses.replace(
                config, init=dataclasses.replace(config.init, weights=weights)
            )
            _check_same_model(next(iter(stages.values())), config, path.parent / file)
        stages[name] = dataclasses.replace(config, out=str(out / name))
        assign(_shapes(config.model), config.optimizer.parts)
        before = name
    return stages


def _first_model(stages: dict[str, Config], run: Path) -> ModelConfig | None:
    """The model of the stages before; of a first one that has begun, that of its run."""
    if stages:
        return next(iter(stages.values())).model
    begun = run / "config.yaml"
    return loading.load(Config, begun).model if begun.is_file() else None


def _load_stage(file: Path, overrides: Sequence[str], model: ModelConfig | None) -> Config:
    try:
        return stage_file.load(file, overrides, model)
    except ConfigError as error:
        prefix = "" if str(error).startswith(str(file)) else f"{file}: "
        raise ConfigError(f"{prefix}{error}") from error


# ------------------------------------------------------------------------------------------- stages


def _train_stage(
    name: str, config: Config, summary: "_Summary", devices: Sequence[Any] | None
) -> None:
    """Trains what is left of a stage."""
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
        loop.train(config, resume="auto", devices=devices, sampler=sampler)
    if not processes.is_first():
        return
    modules = module_table(config)
    _print_modules(name, modules)
    summary.add_stage(name, config, time.perf_counter() - start, modules)


def _say(text: str) -> None:
    if processes.is_first():
        print(text, flush=True)


def _check_same_model(first: Config, config: Config, file: Path) -> None:
    for key, (old, new) in run_folder.differences(first.model, config.model).items():
        difference = f"model.{key} is {quoted(new)}, but {quoted(old)} in the first stage"
        raise ConfigError(f"{file}: {difference}; all stages of a recipe train one model")


# ------------------------------------------------------------------------------------------ modules


def module_table(config: Config) -> list[Module]:
    """What a finished stage did to each module, read from its weights before and after.

    Raises:
        RuntimeError: a frozen parameter is not what it was before.
    """
    shapes, init = _shapes(config.model), config.init
    before = {}
    if init.weights is not None:
        read = {path: x for path, x in shapes.items() if not run_folder.is_fresh(init, path)}
        before = open_model(init.weights).leaves(read, init.fresh)
    after = open_model(config.out).leaves(shapes)
    owner = assign(shapes, config.optimizer.parts)
    trained = {path: config.optimizer.parts[part].train for path, part in owner.items()}
    return compare_modules(before, after, trained)


@functools.cache
def _shapes(model: ModelConfig) -> dict[str, Any]:
    """Path -> shape of every parameter."""
    return conversions.abstract(model)


def _print_modules(stage: str, modules: list[Module]) -> None:
    print(f"\n{stage + ':':<14} {'parameters':>15}  {'trained':<8} {'before':<11} after")
    for m in modules:
        print(f"  {m.module:<12} {m.parameters:>15,}  {m.trained:<8} {m.before:<11} {m.after}")
    print(flush=True)


# ---------------------------------------------------------------------------------------------- end


def _evaluate(last: Path, c: EvaluateConfig, out: Path, summary: "_Summary") -> None:
    """Answers in OUT/evaluation; the scores also go into the model's folder, for its card."""
    folder = out / "evaluation"
    if not folder.exists():
        with summary.timed("evaluation"):
            runner.evaluate(last, c.data, folder, c.images, c.max_new_tokens, c.rows)
    languages = read_json(folder / "scores.json")["languages"]
    card = last / "model" / "config.yaml"
    scores = {f"exact match ({key})": float(of["exact_match"]) for key, of in languages.items()}
    loading.dump(dataclasses.replace(loading.load(FolderConfig, card), scores=scores), card)


class _Summary:
    """OUT/summary.json: what was done, how long it took; on disk for a recipe that was stopped."""

    def __init__(self, path: Path):
        self.path = path
        self.tree: dict[str, Any] = {"stages": [], "seconds": {}}
        if path.is_file():
            self.tree = read_json(path)
        self.tree["versions"] = versions(*run_folder.LIBRARIES)

    def has_stage(self, name: str) -> bool:
        return any(stage["name"] == name for stage in self.tree["stages"])

    def add_stage(self, name: str, config: Config, seconds: float, modules: list[Module]) -> None:
        row = {
            "name": name,
            "run": Path(config.out).name,
            "seconds": seconds,
            "settings": {
                "rows": config.data.rows,
                "length": config.data.length,
                "learning_rate": config.optimizer.learning_rate,
                "schedule": config.optimizer.schedule,
            },
            "modules": [module._asdict() for module in modules],
        }
        self.tree["stages"] = [
            *(stage for stage in self.tree["stages"] if stage["name"] != name),
            row,
        ]
        self._write()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.tree["seconds"][name] = time.perf_counter() - start
        self._write()

    def _write(self) -> None:
        devices = jax.devices()
        self.tree["device"] = f"{len(devices)} x {devices[0].device_kind}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.tree)
