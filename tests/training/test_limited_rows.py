"""Whole runs whose rows hold a limit of examples, with attention that needs one.

cuDNN's kernel is a stand-in that computes what it promises (`tests.support.cudnn_contract`); the
way from the config over packing and the model to its offsets is the real one.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.models.kernels import cudnn, verify
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.training import loop, setup
from tests.support import cudnn_contract, tiny

MOST = 2


@pytest.fixture
def on_hopper(monkeypatch) -> None:
    """This machine's devices count as H100, and the kernel as one that takes float32."""
    monkeypatch.setattr(setup, "device_of", lambda _: Device("gpu", (9, 0)))
    monkeypatch.setattr(cudnn, "DTYPES", ("float32",))
    verify._tried.cache_clear()  # of what another test put into the kernel's place
    cudnn_contract.install(monkeypatch)


def losses(run) -> list[float]:
    return [line["loss"] for line in tiny.numbers(run)]


@pytest.mark.gpu
def test_a_run_on_a_gpu_with_cudnn_is_one_with_blocks(data, tmp_path):
    """The kernel itself, in bfloat16, where a difference of its rounding is not an error."""
    runs = {}
    for name in ("blocks", "cudnn"):
        config = tiny.config(
            *(data, tmp_path / name),
            data={"row_examples": MOST},
            compute={"attention": name, "compute": "bfloat16"},
            train={"steps": 3, "save_every": 3},
        )
        runs[name] = losses(loop.train(config, devices=jax.devices()[:1]))
    np.testing.assert_allclose(runs["cudnn"], runs["blocks"], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_a_run_with_cudnn_is_one_with_dense_attention(data, tmp_path, capsys, mesh):
    runs = {}
    for name in ("dense", "cudnn"):
        config = tiny.config(
            *(data, tmp_path / name),
            data={"row_examples": MOST},
            compute={"attention": name},
            train={"steps": 3, "save_every": 3},
            mesh=dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
        )
        runs[name] = losses(loop.train(config, devices=jax.devices()[: math.prod(mesh)]))
    expected = r"attention: vision cudnn \(.* off float32\), language cudnn \(.*\); a row holds 2"
    assert re.search(expected, capsys.readouterr().err)
    np.testing.assert_allclose(runs["cudnn"], runs["dense"], rtol=1e-5)


@pytest.mark.usefixtures("on_hopper")
def test_a_run_whose_kernel_is_wrong_here_does_not_begin(data, tmp_path, monkeypatch):
    """Offsets of other rows: a fault that a version of cuDNN could have."""
    right = cudnn.sequences

    def wrong(segments, most):
        lengths, offsets = right(segments, most)
        return cudnn.Sequences(lengths, jnp.roll(offsets, 1, axis=0))

    monkeypatch.setattr(cudnn, "sequences", wrong)
    compute = {"attention": "cudnn"}
    config = tiny.config(data, tmp_path / "run", data={"row_examples": MOST}, compute=compute)
    with pytest.raises(ConfigError, match="cudnn: on this cpu the output is off dense attention"):
        loop.train(config, devices=jax.devices()[:1])
    assert not (tmp_path / "run").exists()
