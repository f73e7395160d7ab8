"""Reads a recipe file and the stage files that it names, each once; then their configs.

recipe.yaml, align.yaml, ... -> RecipeFile -> Recipe (with overrides) -> a Config of every stage

A sweep makes the last two for each of its runs.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.checkpoints import stage_file
from mllm_jax.commands.recipe.overrides import NONE, Overrides, sort_overrides
from mllm_jax.commands.recipe.tree import Tree, read_tree
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.training import run_folder
from mllm_jax.training.optimizer import assign, check_adapter

Keys = Mapping[Any, Any]  # of a YAML file


class RecipeFile(NamedTuple):
    """A recipe file and its stage files as they were read."""

    path: Path
    keys: Keys
    tree: Tree
    stages: Mapping[str, Keys]  # file -> its keys


class Recipe(NamedTuple):
    """A recipe with the overrides that are its own, and those of its stages."""

    file: RecipeFile
    config: RecipeConfig
    overrides: Overrides = NONE

    @property
    def tree(self) -> Tree:
        """Its stages."""
        return self.file.tree


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with overrides.

    Raises:
        ConfigError: as `read_recipe` and `override_recipe`.
    """
    return override_recipe(read_recipe(path), overrides)


def read_recipe(path: Path) -> RecipeFile:
    """A recipe file and the files of its stages.

    Raises:
        ConfigError: one is missing or not YAML; the recipe is not valid.
    """
    keys = read_yaml(path)
    require(
        "stages" in keys or "data" not in keys,
        f"{path}: a stage file, where a recipe is expected; mllm-jax train and prepare take it by "
        "--config",
    )
    tree = read_tree(loading.build(RecipeConfig, keys))
    files = dict.fromkeys(tree.files.values())
    return RecipeFile(path, keys, tree, {file: read_yaml(path.parent / file) for file in files})


def override_recipe(file: RecipeFile, overrides: Sequence[str]) -> Recipe:
    """The recipe with overrides of its own, of all its stages or of one.

    Raises:
        ConfigError: an override is not valid.
    """
    sorted_overrides = sort_overrides(overrides, list(file.tree.files))
    keys = loading.overridden(file.keys, sorted_overrides.recipe)
    return Recipe(file, loading.build(RecipeConfig, keys), sorted_overrides)


def build_stages(recipe: Recipe, out: Path) -> dict[str, Config]:
    """The stages by name, checked against each other; `recipe.checks` looks at the disk.

    A stage's output is OUT/<its name>; where it starts from another one, its weights are that
    stage's, whose model it has where its file leaves that out.

    Raises:
        ConfigError: a stage file or an override is not valid, or stages do not fit each other.
    """
    stages: dict[str, Config] = {}
    for name, file in recipe.tree.files.items():
        path, start = recipe.file.path.parent / file, recipe.tree.parents[name]
        model = _model_of_run(out / name) if start is None else stages[start].model
        config = _build_stage(recipe, name, path, model)
        if start is not None:
            init = dataclasses.replace(config.init, weights=str(out / start))
            config = dataclasses.replace(config, init=init)
            _check_same_model(start, stages[start], config, path)
        stages[name] = dataclasses.replace(config, out=str(out / name))
        _check_parts(config)
    return stages


def _build_stage(recipe: Recipe, name: str, path: Path, model: ModelConfig | None) -> Config:
    keys = recipe.file.stages[recipe.tree.files[name]]
    try:
        return stage_file.build(keys, path, recipe.overrides.of(name), model)
    except ConfigError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise ConfigError(f"{prefix}{error}") from error


def _model_of_run(run: Path) -> ModelConfig | None:
    """The model of a first stage that has begun."""
    begun = run / "config.yaml"
    return loading.load(Config, begun).model if begun.is_file() else None


def _check_parts(config: Config) -> None:
    """Every parameter belongs to one part, and adapters are of frozen matrices."""
    all_shapes, parts = shapes(config.model), config.optimizer.parts
    assign(all_shapes, parts)
    if config.adapter is not None:
        check_adapter(all_shapes, parts, config.adapter)


def _check_same_model(start: str, before: Config, config: Config, file: Path) -> None:
    for key, (old, new) in run_folder.model_differences(before.model, config.model).items():
        difference = f"model.{key} is {quoted(new)}, but {quoted(old)} in stage {start}"
        raise ConfigError(f"{file}: {difference}; all stages of a recipe train one model")


@functools.cache
def shapes(model: ModelConfig) -> dict[str, Any]:
    """Path -> shape of every parameter."""
    return conversions.abstract(model)
