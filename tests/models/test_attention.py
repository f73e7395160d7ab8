"""Rotary positions against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.config.model import RopeConfig
from mllm_jax.models import attention


@pytest.mark.parametrize("kind", ["default", "llama3"])
@pytest.mark.parametrize(
    ("factor", "theta", "original"), [(8.0, 500000.0, 8192), (10.0, 10000.0, 2048)]
)
def test_frequencies_equal_transformers(kind, factor, theta, original):
    pytest.importorskip("torch", reason="the reference is transformers with torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": kind, "rope_theta": theta}
    if kind == "llama3":
        rope |= {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": original}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=rope)
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    ours = attention.rotary_frequencies(RopeConfig(theta, kind, factor, 1.0, 4.0, original), 128)
    np.testing.assert_array_max_ulp(ours, expected, 1)


def test_rotations_at_the_last_position_equal_transformers():
    """A unit in a frequency's last place would turn position 131,071 by 6e-3."""
    torch = pytest.importorskip("torch", reason="the reference is transformers with torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        rope_parameters=rope,
        max_position_embeddings=131072,
    )
    positions = [0, 1, 8191, 65_537, 131_071]
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor([positions]))
    tables = attention.rotary_tables(RopeConfig(kind="llama3"), 128, jnp.array([positions]))
    for ours, theirs in zip(tables, expected, strict=True):
        np.testing.assert_allclose(ours[0, :, 0], theirs[0, :, :64].numpy(), atol=2e-7)


def test_rotations_that_are_looked_up_are_those_of_their_positions():
    positions = jnp.array([[0, 1, 2, 0, 1], [4, 3, 2, 1, 0]])
    computed = attention.rotary_tables(RopeConfig(), 8, positions)
    looked_up = attention.rotary_tables(RopeConfig(), 8, positions, length=5)
    for ours, reference in zip(looked_up, computed, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-7)
    beyond = attention.rotary_tables(RopeConfig(), 8, positions, length=4)
    assert np.isnan(beyond[0][1, 0]).all() and np.isfinite(beyond[0][0]).all()


def test_rotation_turns_halves_by_hand():
    config = RopeConfig(theta=100.0)  # frequencies 1 and 1/10 for a head of 4
    tables = attention.rotary_tables(config, 4, jnp.array([[0, 2]]))
    x = jnp.broadcast_to(jnp.array([1.0, 1.0, 0.0, 0.0]), (1, 2, 1, 4))
    out = attention.rotate(x, tables)
    np.testing.assert_allclose(out[0, 0, 0], [1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        out[0, 1, 0], [np.cos(2), np.cos(0.2), np.sin(2), np.sin(0.2)], atol=1e-6
    )
