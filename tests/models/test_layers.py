"""What both towers are made of: norms in float32, exact gelu, the scale of initial weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.batch import ModelInputs
from mllm_jax.common.trees import flatten, unflatten
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models import clip, layers, mllm
from mllm_jax.models.connector import Connector
from mllm_jax.models.kernels.select import Selection

LANGUAGE = LanguageConfig(
    vocab=512, width=64, mlp=96, layers=2, heads=4, kv_heads=2, head_dim=16, max_length=64
)
VISION = VisionConfig(image_size=28, patch_size=7, width=64, mlp=96, layers=4, heads=4)
COMPUTE = ComputeConfig(compute="float32", remat="none")


@pytest.mark.parametrize("norm", [layers.RMSNorm, layers.LayerNorm])
def test_norms_compute_in_float32(norm):
    """Of bfloat16 numbers far from zero: the same as of these numbers in float32."""
    x = (100 + jax.random.normal(jax.random.key(0), (3, 5, 64))).astype(jnp.bfloat16)
    params = {"scale": jnp.linspace(0.5, 2, 64), "bias": jnp.linspace(-1, 1, 64)}
    params = params if norm is layers.LayerNorm else {"scale": params["scale"]}
    apply: Any = norm(1e-5, jnp.float32).apply
    got = apply({"params": params}, x)
    np.testing.assert_allclose(got, apply({"params": params}, x.astype(jnp.float32)), rtol=1e-6)
    values = np.asarray(x, np.float64)
    if norm is layers.LayerNorm:
        values = values - values.mean(-1, keepdims=True)
    scale = np.asarray(params["scale"])
    want = values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5) * scale
    want = want + np.asarray(params.get("bias", 0))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    rounded: Any = norm(1e-5, jnp.bfloat16).apply({"params": params}, x)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, got.astype(jnp.bfloat16))


def test_bytes_are_scaled_as_clip_was_trained():
    """0, 100 and 255 by hand; what is float is normalised already."""
    mean, std = np.array(VISION.image_mean), np.array(VISION.image_std)
    pixels = np.array([0, 100, 255], np.uint8)[:, None, None, None].repeat(3, axis=3)
    want = np.stack([-mean / std, (100 / 255 - mean) / std, (1 - mean) / std])
    got = clip.normalise(VISION, jnp.asarray(pixels))
    np.testing.assert_allclose(got[:, 0, 0], want, rtol=1e-5)
    np.testing.assert_array_equal(clip.normalise(VISION, got), got)


def test_gelu_is_exact():
    """2 x Phi(2); the tanh form gives 1.9545977."""
    np.testing.assert_allclose(clip.ACTIVATIONS["gelu"](jnp.array(2.0)), 1.9544997, atol=1e-6)
    quick = clip.ACTIVATIONS["quick_gelu"](jnp.array(2.0))
    np.testing.assert_allclose(quick, 2 / (1 + np.exp(-1.702 * 2)), atol=1e-6)
    one = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    bridge = Connector(ConnectorConfig("mlp"), 1, 1, jnp.dtype("float32"))
    got: Any = bridge.apply(
        {"params": {"linear_1": one, "linear_2": one}}, jnp.full((1, 1, 1), 2.0)
    )
    np.testing.assert_allclose(got, [[[1.9544997]]], atol=1e-6)


@pytest.mark.slow
def test_initial_weights_have_the_scale_they_are_said_to_have():
    config = ModelConfig(VISION, ConnectorConfig("mlp"), LANGUAGE, image_token=511)
    drawn = mllm.init(mllm.build(config, COMPUTE), jax.random.key(0))
    deviations = {
        "language/embedding": 0.02,
        "language/head/kernel": 64**-0.5,
        "language/layers/attention/q/kernel": 64**-0.5,
        "language/layers/attention/out/kernel": 64**-0.5,
        "language/layers/mlp/gate/kernel": 64**-0.5,
        "language/layers/mlp/down/kernel": 96**-0.5,
        "vision/patch_embedding/kernel": (7 * 7 * 3) ** -0.5,
        "vision/class_embedding": 64**-0.5,
        "vision/position_embedding": 1.0,
        "vision/layers/mlp/in/kernel": 64**-0.5,
        "connector/linear_1/kernel": 64**-0.5,
        "connector/linear_2/kernel": 64**-0.5,
    }
    for path, deviation in deviations.items():
        np.testing.assert_allclose(drawn[path].std(), deviation, rtol=0.25, err_msg=path)
    for path, leaf in drawn.items():
        if path.endswith("/bias"):
            assert not leaf.any(), path
        if path.endswith("/scale"):
            assert (leaf == 1).all(), path
        assert leaf.dtype == jnp.float32, path


def test_every_norm_of_the_decoder_has_the_configs_eps():
    """The final norm too: with eps 100 the last hidden states are a tenth as long and shorter."""

    def last(eps):
        language = dataclasses.replace(LANGUAGE, norm_eps=eps)
        model = mllm.build(ModelConfig(language=language), COMPUTE)
        params = mllm.init(model, jax.random.key(0))
        tokens, ones = jnp.arange(8)[None], jnp.ones((1, 8), jnp.int32)
        pixels = jnp.zeros((1, 0, 1, 1, 3), jnp.uint8)
        return mllm.hidden(model, params, ModelInputs(tokens, ones, tokens, -ones, pixels))

    assert float(jnp.sqrt(jnp.mean(last(1e-5) ** 2))) > 0.9
    assert float(jnp.sqrt(jnp.mean(last(100.0) ** 2))) < 0.1


def features(change) -> jax.Array:
    """Patch features of two images after `change` of the tower's flat parameters."""
    tower = clip.CLIP(VISION, COMPUTE, Selection("dense"))
    pixels = jax.random.randint(jax.random.key(1), (2, 28, 28, 3), 0, 256).astype(jnp.uint8)
    params = flatten(tower.init(jax.random.key(0), pixels)["params"])
    out: Any = tower.apply({"params": unflatten(change(params))}, pixels)
    return out


def test_the_used_layers_alone_decide_and_may_stand_alone():
    """All layers, other numbers in the unused ones, or the used ones alone: the same features."""
    used = VISION.used_layers

    def spoilt(params):
        parts = {path: x.at[used:].set(jnp.nan) for path, x in params.items() if "layers/" in path}
        return params | parts | {path: x * jnp.nan for path, x in params.items() if "post_" in path}

    def alone(params):
        parts = {path: x[:used] for path, x in params.items() if "layers/" in path}
        return {path: x for path, x in (params | parts).items() if "post_norm" not in path}

    for change in (spoilt, alone):
        np.testing.assert_array_equal(features(change), features(lambda params: params))
