"""A run folder that the tests of generation share, its parameters far from ties."""

from pathlib import Path

import jax
import pytest

from mllm_jax.generation.engine import Answerer
from mllm_jax.training.loop import train
from tests.support import tiny


@pytest.fixture(scope="session")
def run(data, tmp_path_factory) -> Path:
    """A run folder after one step: a model like any other, if not a clever one."""
    out = tmp_path_factory.mktemp("run") / "run"
    config = tiny.config(data, out, train={"steps": 1, "save_every": 1})
    return train(config, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def wide(run) -> dict[str, jax.Array]:
    """The run's parameters made wider: answers depend on all of the prompt."""
    params = Answerer(run).params
    params = {path: x * 4 if x.ndim > 2 else x for path, x in params.items()}
    return params | {"language/embedding": params["language/embedding"] * 50}


@pytest.fixture(scope="session")
def opened(run, wide) -> Answerer:
    """The model with the wider parameters."""
    opened = Answerer(run)
    opened.__dict__["params"] = wide
    return opened
