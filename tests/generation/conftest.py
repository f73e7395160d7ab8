"""A run folder that the tests of generation share, its parameters far from ties."""

from pathlib import Path

import jax
import pytest

from mllm_jax.generation.engine import Answerer
from mllm_jax.models import decoding


@pytest.fixture(scope="session")
def run(trained_run) -> Path:
    """A run folder after a few steps: a model like any other, if not a clever one."""
    return trained_run


@pytest.fixture(scope="session")
def wide(run) -> dict[str, jax.Array]:
    """The run's parameters made wider: answers depend on all of the prompt."""
    params = Answerer(run).params
    least = lambda path: 2 if path.startswith(decoding.LAYERS) else 3  # noqa: E731
    params = {path: x * 4 if x.ndim >= least(path) else x for path, x in params.items()}
    return params | {"language/embedding": params["language/embedding"] * 50}


@pytest.fixture(scope="session")
def opened(run, wide) -> Answerer:
    """The model with the wider parameters."""
    opened = Answerer(run)
    opened.__dict__["params"] = wide
    return opened
