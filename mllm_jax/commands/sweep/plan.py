"""The stages of all runs as one tree: what several runs share is in it once.

run 0-1: backbone -> align(0) -> instruct(0, seed 1)      backbone-K --> align-L --> instruct-M
run 0-2: backbone -> align(0) -> instruct(0, seed 2)  ->                        \\-> instruct-N

A stage is known by a digest of its config (its folder left out) and of the stage that it starts
from; where it is to be trained, also of the data and of the first weights.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.commands.recipe.checks import naming
from mllm_jax.commands.recipe.files import Recipe, build_stages, override_recipe, read_recipe
from mllm_jax.commands.recipe.tree import Tree
from mllm_jax.commands.sweep.runs import Run
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config.recipe import EvaluateConfig
from mllm_jax.config.stage import Config
from mllm_jax.config.sweep import SweepConfig
from mllm_jax.training import run_folder

STAGES = "stages"  # folder of the stages in that of the sweep
NO_PLACE = "-"  # instead of a path that decides nothing
DIGITS = 10  # of a digest in a name: a million stages share one with a probability of 5e-7

# of the stages from the first one to this one: what they read
Contents = Callable[[Sequence[Config]], Any]


class Loaded(NamedTuple):
    """A run with its stages, as they are before they have a place."""

    run: Run
    recipe: Recipe
    stages: Mapping[str, Config]


class Row(NamedTuple):
    """A row of the table: a finished model of a run, or a model that exists."""

    name: str  # the run's; of several variants RUN/VARIANT
    run: Run
    variant: str  # empty where a run ends in a single model


class Plan(NamedTuple):
    """All that is trained and evaluated.

    Attributes:
        tree: all stages; its variants are the rows that are trained.
        stages: by their names in the tree.
        rows: in the order of the table, aliases among them.
        evaluate: how all of them are evaluated.
    """

    tree: Tree
    stages: Mapping[str, Config]
    rows: Sequence[Row]
    evaluate: EvaluateConfig

    def only(self, runs: Sequence[str]) -> "Plan":
        """The rows of these runs, and the stages that they need."""
        rows = [row for row in self.rows if row.run.name in runs]
        variants = {row.name: self.tree.variants[row.name] for row in rows if not row.run.model}
        tree = self.tree.only(list(variants))._replace(variants=variants)
        stages = {name: self.stages[name] for name in tree.files}
        return self._replace(tree=tree, stages=stages, rows=rows)


def load_runs(sweep: SweepConfig, recipe: Path, runs: Sequence[Run]) -> list[Loaded]:
    """The configs of every run, checked as `recipe` checks those of one.

    Args:
        sweep: the sweep file.
        recipe: path of its recipe file.
        runs: aliases are left out.

    Raises:
        ConfigError: a file or an override is not valid, with the run's name; a recipe without
            `evaluate`, or runs that are evaluated in different ways.
    """
    loaded: list[Loaded] = []
    file = read_recipe(recipe)  # what is wrong with the recipe itself is not a run's
    for run in runs:
        if run.model:
            continue
        with naming_run(run.name):
            one = override_recipe(file, run.arguments)
            one = one._replace(config=dataclasses.replace(one.config, export=sweep.export))
            loaded.append(Loaded(run, one, build_stages(one, Path(sweep.out) / STAGES)))
    first = loaded[0]
    require(
        first.recipe.config.evaluate is not None,
        f"{recipe}: no section evaluate, so there would be nothing to compare; add one",
    )
    for other in loaded[1:]:
        differ = run_folder.differences(first.recipe.config.evaluate, other.recipe.config.evaluate)
        for key, (one, two) in differ.items():
            raise ConfigError(
                f"evaluate.{key} is {quoted(one, 60)} in run {first.run.name} and {quoted(two, 60)}"
                f" in run {other.run.name}; all runs are compared on one evaluation: set it in "
                "`overrides`"
            )
    return loaded


@contextmanager
def naming_run(name: str) -> Iterator[None]:
    """Puts the name of a run before what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"run {name}: {error}") from error


def make_plan(
    loaded: Sequence[Loaded], runs: Sequence[Run], out: Path, contents: Contents | None = None
) -> Plan:
    """Joins the stages of all runs, and gives each of them a folder.

    Args:
        loaded: of the runs that are trained.
        runs: all of them, in the order of the table.
        out: folder of the sweep.
        contents: digests of what a stage reads; without it, stages are told apart by config alone.

    Raises:
        ConfigError: two runs are the same.
    """
    files: dict[str, str] = {}
    parents: dict[str, str | None] = {}
    stages: dict[str, Config] = {}
    variants: dict[str, str] = {}
    rows: list[Row] = []
    by_name = {one.run.name: one for one in loaded}
    for run in runs:
        if run.name not in by_name:
            rows.append(Row(run.name, run, ""))
            continue
        one = by_name[run.name]
        tree = one.recipe.tree
        names = _names(one, contents)
        for stage, config in one.stages.items():
            name, start = names[stage], tree.parents[stage]
            files[name] = tree.files[stage]
            parents[name] = None if start is None else names[start]
            stages[name] = _placed(config, out, name, parents[name])
        for variant, stage in tree.variants.items():
            row = Row(run.name, run, "")
            if not tree.single:
                row = Row(f"{run.name}/{variant}", run, variant)
            rows.append(row)
            variants[row.name] = names[stage]
    _check_different(rows, variants)
    evaluate = loaded[0].recipe.config.evaluate
    assert evaluate is not None  # see `load_runs`
    return Plan(Tree(files, parents, variants, single=False), stages, rows, evaluate)


def _names(one: Loaded, contents: Contents | None) -> dict[str, str]:
    """Stage of a run -> its name in the sweep."""
    names: dict[str, str] = {}
    for stage, config in one.stages.items():
        start = one.recipe.tree.parents[stage]
        init = config.init if start is None else dataclasses.replace(config.init, weights=NO_PLACE)
        about = _settings(dataclasses.replace(config, out=NO_PLACE, init=init))
        about["start"] = start and names[start]
        if contents is not None:
            path = [one.stages[name] for name in one.recipe.tree.path(stage)]
            with naming_run(one.run.name), naming(stage):
                about["contents"] = contents(path)
        text = json.dumps(about, sort_keys=True).encode("utf-8", "surrogatepass")
        names[stage] = f"{stage}-{blake2b(text, digest_size=16).hexdigest()[:DIGITS]}"
    return names


def _settings(section: Any) -> Any:
    """A config section as plain values, without those that are defaults.

    So an option that a later version adds does not change what a stage is known by.
    """
    if dataclasses.is_dataclass(section):
        return {
            field.name: _settings(value)
            for field in dataclasses.fields(section)
            if (value := getattr(section, field.name)) != _default(field)
        }
    if isinstance(section, dict):
        return {key: _settings(value) for key, value in section.items()}
    return list(section) if isinstance(section, tuple) else section


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _placed(config: Config, out: Path, name: str, start: str | None) -> Config:
    if start is not None:
        weights = str(out / STAGES / start)
        config = dataclasses.replace(config, init=dataclasses.replace(config.init, weights=weights))
    return dataclasses.replace(config, out=str(out / STAGES / name))


def _check_different(rows: Sequence[Row], variants: Mapping[str, str]) -> None:
    """Refuses two runs whose finished models are all the same."""
    ends: dict[str, set[str]] = {}
    for row in rows:
        if not row.run.model:
            ends.setdefault(row.run.name, set()).add(variants[row.name])
    seen: dict[tuple[str, ...], str] = {}
    for run, leaves in ends.items():
        first = seen.setdefault(tuple(sorted(leaves)), run)
        require(
            first == run,
            f"runs {first} and {run} are the same: no stage differs; put one of them into "
            "`leave_out`, or give them different overrides",
        )
