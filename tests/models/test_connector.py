"""Pooling of 2 x 2 patches: by hand, counted alike everywhere, and packed = unpacked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.checkpoints.hf.connector_form import choose_form
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ConnectorConfig, VisionConfig
from mllm_jax.data.images.tiles import placeholders
from mllm_jax.models import axes, mllm
from mllm_jax.models.connector import pool
from mllm_jax.training import flops
from tests.models.test_mllm import ANYRES, COMPUTE, CONFIG, close, loss_and_grads, row

POOLS = ["average", "shuffle"]
# squares of a side of three patches, by hand: the last line is repeated
SQUARES = [[0, 1, 3, 4], [2, 2, 5, 5], [6, 7, 6, 7], [8, 8, 8, 8]]


def pooled(kind, **vision):
    """The test model with another connector, and perhaps another tower."""
    assert CONFIG.vision is not None
    tower = dataclasses.replace(CONFIG.vision, **vision)
    return dataclasses.replace(CONFIG, vision=tower, connector=ConnectorConfig("mlp", pool=kind))


def test_squares_by_hand():
    x = jnp.arange(9 * 2, dtype=jnp.float32).reshape(1, 9, 2)
    shuffled = pool(ConnectorConfig(pool="shuffle"), x)
    expected = np.asarray(x)[0][np.array(SQUARES)]  # [4 vectors, 4 patches, C]
    assert np.array_equal(shuffled[0], expected.reshape(4, 8))
    mean = pool(ConnectorConfig(pool="average"), x)
    assert np.array_equal(mean[0], expected.mean(axis=1))
    assert pool(ConnectorConfig(), x) is x
    even = jnp.arange(16, dtype=jnp.float32).reshape(1, 16, 1)
    assert pool(ConnectorConfig(pool="average"), even)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_the_mean_is_of_the_patches_there_are():
    """A repeated line changes no mean: an odd side's last vectors are of two patches, or one."""
    x = jax.random.normal(jax.random.key(0), (1, 9, 1))
    mean = pool(ConnectorConfig(pool="average"), x)[0, :, 0]
    flat = np.asarray(x)[0, :, 0]
    there = [flat[[0, 1, 3, 4]].mean(), flat[[2, 5]].mean(), flat[[6, 7]].mean(), flat[8]]
    np.testing.assert_allclose(mean, there, rtol=1e-5)


@pytest.mark.parametrize("kind", POOLS)
def test_counts(kind):
    """One number for the placeholders, wherever it is asked for."""
    model = pooled(kind)
    assert model.patches == 4
    layout = model.image_layout((28, 28))
    assert (layout.tiles, layout.placeholders, layout.newline) == (1, 4, False)
    assert model.vision is not None
    assert placeholders(layout, model.vision).tolist() == [0, 1, 2, 3]
    assert pooled(kind, image_size=35).patches == 9  # of 5 x 5
    siglip = VisionConfig(kind="siglip", image_size=384, patch_size=14)
    assert dataclasses.replace(model, vision=siglip).patches == 14**2
    assert dataclasses.replace(model, vision=VisionConfig()).patches == 144


@pytest.mark.parametrize("kind", POOLS)
def test_parameters(kind):
    shapes = mllm.abstract_params(mllm.build(pooled(kind), COMPUTE))
    features = 24 * (4 if kind == "shuffle" else 1)
    assert shapes["connector/linear_1/kernel"].shape == (features, 32)
    axes.logical_axes(shapes)
    sizes = flops.matmul_parameters(pooled(kind))
    assert sizes["connector/linear_1/kernel"] == features * 32


def conversation(seed, images, text):
    """As test_mllm's, of images of four placeholders."""
    rng = np.random.default_rng(seed)
    tokens, index = [rng.integers(0, 100, text)], [np.full(text, -1)]
    for i in range(images):
        tokens += [np.full(4, 100), rng.integers(0, 100, text)]
        index += [np.arange(4) + i * 4, np.full(text, -1)]
    pixels = rng.integers(0, 256, (images, 28, 28, 3), dtype=np.uint8)
    return np.concatenate(tokens), np.concatenate(index), pixels


@pytest.mark.parametrize("kind", [pytest.param("average", marks=pytest.mark.slow), "shuffle"])
def test_packed_equals_unpacked_loss_and_gradients(kind):
    model = mllm.build(pooled(kind), COMPUTE)
    params = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    chats = [conversation(1, 2, 5), conversation(2, 0, 12), conversation(3, 1, 9)]
    packed, packed_grads = loss_and_grads(params, model, row(chats, 80, 4, P=4))
    alone = [loss_and_grads(params, model, row([chat], 30, 2, P=4)) for chat in chats]
    np.testing.assert_allclose(packed, sum(loss for loss, _ in alone), rtol=1e-6)
    summed = jax.tree.map(lambda *g: sum(g), *(grads for _, grads in alone))
    jax.tree.map(close, packed_grads, summed)


@pytest.mark.parametrize("kind", POOLS)
def test_what_pooling_does_not_go_with(kind):
    with pytest.raises(ConfigError, match=f"connector.pool={kind} does not go with model.grids"):
        dataclasses.replace(ANYRES, connector=ConnectorConfig("mlp", pool=kind))
    with pytest.raises(ConfigError, match=f"pool={kind}: LlavaForConditionalGeneration has no"):
        choose_form(pooled(kind))
