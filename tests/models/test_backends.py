"""Which attention each module uses, named for logs."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import ComputeConfig, Config
from mllm_jax.distributed import sharding
from mllm_jax.models import mllm
from mllm_jax.models.backends import backends
from mllm_jax.models.kernels import tokamax
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.training import run_log
from mllm_jax.training.setup import make_setup
from tests.support.valid_config import TREE

H100 = Device("gpu", (9, 0))
CONFIG = loading.build(Config, loading.overridden(TREE, ["--model.vision.heads", "3"]))


def model(attention: str, segments: int | None = 8, compute: str = "bfloat16") -> mllm.MLLM:
    chosen = loading.build(ComputeConfig, {"attention": attention, "compute": compute})
    return mllm.build(CONFIG.model, chosen, H100, segments=segments)


def test_each_module_by_its_own_shape():
    assert backends(model("auto"), 2, 4, 64) == {"vision": "cudnn", "language": "cudnn"}
    exact = {"vision": "blocks", "language": "blocks"}
    assert backends(model("auto", compute="float32"), 2, 4, 64) == exact
    assert backends(model("cudnn"), 2, 4, 64) == {"vision": "cudnn", "language": "cudnn"}
    assert backends(model("cudnn"), 2, 0, 64) == {"language": "cudnn"}


def test_the_image_tower_may_refuse_what_the_language_model_takes(monkeypatch):
    monkeypatch.setattr(tokamax, "PACKAGE", "absent_package")
    built = model("cudnn")
    twelve_wide = loading.build(Config, TREE).model
    built = mllm.build(twelve_wide, built.compute, H100, segments=8)
    with pytest.raises(ConfigError, match="multiples of 8 up to 128, not 12; choose blocks"):
        backends(built, 2, 4, 64)


def test_a_limit_of_examples_is_asked_for_when_the_model_is_built():
    with pytest.raises(ConfigError, match=r"data\.row_examples"):
        model("cudnn", segments=None)


def test_the_line_of_a_run():
    flags = ["--compute.attention", "blocks", "--data.row_examples", "5"]
    config = loading.build(Config, loading.overridden(TREE, flags))
    mesh = sharding.make_mesh(config.mesh.axes)
    setup = make_setup(
        *(config.model, config.compute, config.optimizer, mesh),
        steps=10,
        segments=config.data.segments,
    )
    line = run_log.attention(config, setup)
    assert line == "attention: vision blocks, language blocks; a row holds 5 examples at most"
