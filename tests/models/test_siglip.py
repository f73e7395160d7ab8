"""SigLIP's tower: what it reads, packed = unpacked, and what no gradient reaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ModelConfig, VisionConfig
from mllm_jax.models import axes, mllm
from tests.models.test_mllm import (
    COMPUTE,
    CONFIG,
    P,
    close,
    conversation,
    inputs_of,
    loss_and_grads,
    row,
)

# 28 pixels in patches of 6: 4 x 4 of them, and the last 4 pixels of each line are left out
VISION = VisionConfig(
    image_size=28, patch_size=6, width=24, mlp=48, layers=3, heads=2, kind="siglip",
    activation="gelu_pytorch_tanh", norm_eps=1e-6, pooling_head=True,
)  # fmt: skip
SIGLIP = dataclasses.replace(CONFIG, vision=VISION)


@pytest.fixture(scope="module")
def params():
    model = mllm.build(SIGLIP, COMPUTE)
    return jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))


def test_sizes():
    assert VISION.patches == VISION.tokens == P == SIGLIP.patches
    large = VisionConfig(kind="siglip", image_size=384, patch_size=14)
    assert (large.patches, large.tokens) == (729, 729)
    assert VisionConfig().tokens == 577
    assert dataclasses.replace(VISION, image_size=512, patch_size=16).patches == 1024


def test_what_a_tower_cannot_be():
    with pytest.raises(ConfigError, match="image_size=28 is not a multiple of patch_size=6"):
        dataclasses.replace(VISION, kind="clip", pooling_head=False)
    with pytest.raises(ConfigError, match="pooling_head=true: only a tower with kind: siglip"):
        VisionConfig(pooling_head=True)
    with pytest.raises(ConfigError, match="image_size=5 is below patch_size=6"):
        dataclasses.replace(VISION, image_size=5)


@pytest.mark.slow
def test_packed_equals_unpacked_loss_and_gradients(params):
    """Two images, none and one image in one row = three rows of their own."""
    model = mllm.build(SIGLIP, COMPUTE)
    chats = [conversation(1, 2, 5), conversation(2, 0, 30), conversation(3, 1, 9)]
    packed, packed_grads = loss_and_grads(params, model, row(chats, 150, 4))
    alone = [loss_and_grads(params, model, row([chat], 60, 2)) for chat in chats]
    np.testing.assert_allclose(packed, sum(loss for loss, _ in alone), rtol=1e-6)
    summed = jax.tree.map(lambda *g: sum(g), *(grads for _, grads in alone))
    jax.tree.map(close, packed_grads, summed)


def test_what_no_gradient_reaches(params):
    """The last layer, the post-norm and the pooling head: as `used_layers` says, and no other."""
    model = mllm.build(SIGLIP, COMPUTE)
    _, grads = loss_and_grads(params, model, row([conversation(1, 1, 9)], 40, 1))
    used = mllm.used_layers(SIGLIP, params, images=True)
    for path, gradient in grads.items():
        if not path.startswith("vision/"):
            continue
        if used.get(path) == 0:
            assert not np.any(gradient), path
        elif path in used:
            assert not np.any(gradient[used[path] :]), path
        else:
            assert np.any(gradient), path
    zero = {path for path, layers in used.items() if layers == 0}
    assert zero == {p for p in params if p.startswith(("vision/post_norm/", "vision/head/"))}
    last = dataclasses.replace(SIGLIP, vision=dataclasses.replace(VISION, feature_layer=-1))
    assert mllm.used_layers(last, params, images=True) == dict.fromkeys(sorted(zero), 0)


def test_pixels_beyond_the_last_whole_patch_are_not_read(params):
    model = mllm.build(SIGLIP, COMPUTE)
    inputs = inputs_of(row([conversation(1, 1, 9)], 40, 1))
    hidden = mllm.hidden(model, params, inputs)
    pixels = jnp.asarray(inputs.pixels)
    outside = pixels.at[:, :, 24:].set(0).at[:, :, :, 24:].set(255)
    assert np.array_equal(hidden, mllm.hidden(model, params, inputs._replace(pixels=outside)))
    inside = pixels.at[:, :, 23, 23].add(100)
    assert not np.array_equal(hidden, mllm.hidden(model, params, inputs._replace(pixels=inside)))


def test_every_parameter_has_axes(params):
    names = axes.logical_axes(params)
    assert names["vision/head/attention/out/kernel"] == ("heads", "head_dim", "embed")
    assert names["vision/head/attention/in/kernel"] == ("embed", "none")
    without = dataclasses.replace(VISION, pooling_head=False)
    paths = mllm.abstract_params(mllm.build(ModelConfig(vision=without), COMPUTE))
    assert sorted(paths) == sorted(
        p for p in params if p.startswith("vision/") and "/head/" not in p
    )
    assert not any("class_embedding" in path or "pre_norm" in path for path in paths)


def test_the_last_hidden_state_comes_before_the_post_norm(params):
    """As transformers' `hidden_states[-1]`: the post-norm changes nothing, whatever it holds."""
    last = dataclasses.replace(SIGLIP, vision=dataclasses.replace(VISION, feature_layer=-1))
    model = mllm.build(last, COMPUTE)
    pixels = jnp.zeros((1, 1, 28, 28, 3), jnp.uint8)
    changed = params | {"vision/post_norm/scale": jnp.full((24,), 7.0)}
    one, other = (mllm.image_embeddings(model, p, pixels) for p in (params, changed))
    assert np.array_equal(one, other)
