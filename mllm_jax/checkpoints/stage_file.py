"""Reads the file of one stage; a `model` section that is left out is that of its weights.

    init: {weights: models/start}     ->  model: as in models/start/config.yaml
    model: {grids: {order: hw}}       ->  the same, its images cut into tiles from here on

The config in a run's folder always has the section, so a run can be read without its weights.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config import loading
from mllm_jax.config.stage import Config

if TYPE_CHECKING:
    from mllm_jax.config.model import ModelConfig


def load(
    path: str | Path, overrides: Sequence[str] = (), model: "ModelConfig | None" = None
) -> Config:
    """One stage, complete.

    Args:
        path: the YAML file.
        overrides: as in `loading.load`; of a section that is left out, they change what the
            weights say.
        model: what the weights will be, where they do not exist yet (a recipe's later stages).

    Raises:
        ConfigError: as `loading.load`; the section is left out and the weights are not there.
    """
    return build(read_yaml(path), path, overrides, model)


def build(
    keys: Mapping[Any, Any],
    path: str | Path,
    overrides: Sequence[str] = (),
    model: "ModelConfig | None" = None,
) -> Config:
    """As `load`, from the keys of a file that has been read; `path` is for messages."""
    require(
        "stages" not in keys,
        f"{path}: a recipe, where a stage file is expected; mllm-jax recipe and prepare take it, "
        "other commands one of its stages",
    )
    loading.check_keys(Config, keys)  # a misspelt `model` is not a model that is left out
    section = keys.get("model")
    if section is None or _has_grids_alone(section):
        if model is None:
            model = _model_of(loading.overridden(keys, overrides))
        keys = {**keys, "model": loading.to_dict(model) | (section or {})}
    return loading.build(Config, loading.overridden(keys, overrides))


def _has_grids_alone(section: Any) -> bool:
    """Whether a `model` section adds grids to the model of the weights and says no more."""
    return isinstance(section, dict) and section.keys() == {"grids"}


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a stage file for a Python program, as the commands do.

        load_config("align.yaml", {"train.steps": 100, "optimizer.learning_rate": 1e-4})

    Args:
        path: the YAML file.
        overrides: key of an option with its section -> value; docs/config.md lists all keys.

    Raises:
        ConfigError: one line naming the key, the value and what is allowed.
    """
    # JSON is YAML: one reader checks what comes from here and from the command line
    options = [f"--{k}={json.dumps(v, default=os.fspath)}" for k, v in (overrides or {}).items()]
    return load(path, options)


def _model_of(tree: dict[Any, Any]) -> "ModelConfig":
    """What the network in `init.weights` is."""
    init = tree.get("init")
    weights = init.get("weights") if isinstance(init, dict) else None
    require(
        isinstance(weights, str) and weights != "",
        "model: missing; write the section, or give init.weights, the folder it is then read from",
    )

    from mllm_jax.checkpoints.open_model import open_model  # slow: imports JAX

    try:
        return open_model(str(weights)).config.model
    except ConfigError as error:
        raise ConfigError(
            f"model: left out, so it is read from init.weights, but {error}; give a folder of the "
            "same model by --init.weights, or write the section"
        ) from error
