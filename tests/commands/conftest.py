"""What tests of `bench` share: one device, and a stage file of the smallest model."""

import jax
import pytest

from mllm_jax.commands.bench import step
from mllm_jax.config import loading
from mllm_jax.distributed import sharding
from tests.support import tiny


@pytest.fixture
def one_device(monkeypatch):
    """Programs of one device compile in a fifth of the time."""
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    monkeypatch.setattr(step.sharding, "make_mesh", lambda _: mesh)


@pytest.fixture(scope="module")
def bench_stage(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bench")
    tiny.make_data(folder / "data")
    loading.dump(tiny.config(folder / "data", folder / "run"), folder / "stage.yaml")
    return str(folder / "stage.yaml")
