"""Attention backends against the dense reference, and rotary positions against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.config.model import RopeConfig
from mllm_jax.models import attention, block_attention

B, T, N, K, H = 2, 300, 4, 2, 8
SEGMENTS = np.zeros((B, T), np.int32)
SEGMENTS[0, :100], SEGMENTS[0, 100:290] = 1, 2
SEGMENTS[1, :] = 1


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def loss(q, k, v, g, backend, causal):
    out = attention.attend(q, k, v, jnp.asarray(SEGMENTS), causal=causal, backend=backend)
    return jnp.sum(out * g), out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["blocks", "loop"])
def test_blockwise_equals_dense_forward_and_backward(backend, causal):
    q, k, v, g = inputs()
    run = lambda backend: jax.jit(  # noqa: E731
        jax.value_and_grad(
            functools.partial(loss, backend=backend, causal=causal), (0, 1, 2), has_aux=True
        )
    )(q, k, v, g)
    (_, expected), expected_grads = run("dense")
    (_, out), grads = run(backend)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)


@pytest.mark.parametrize("backend", ["dense", "blocks", "loop"])
def test_no_empty_array_enters_a_mesh(make_mesh, backend):
    """jaxlib 0.11.2 crashes while it compiles a shard_map that is given one."""
    run = functools.partial(loss, backend=backend, causal=True)
    with jax.set_mesh(make_mesh(data=2, tensor=2, devices=4)):
        program = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True)).lower(*inputs())
    assert "tensor<2x300x4x8x" in program.as_text()
    assert "tensor<0x" not in program.as_text()


@pytest.mark.parametrize("backend", ["dense", "blocks", "loop"])
def test_no_backend_lets_a_segment_see_another(backend):
    """Other keys and values in segment 1 move no bit of segment 2 or of the other row."""
    q, k, v, _ = inputs()
    mine = jnp.asarray(SEGMENTS == 1)[:, :, None, None] & (jnp.arange(B) == 0)[:, None, None, None]

    def run(k, v):
        return attention.attend(q, k, v, jnp.asarray(SEGMENTS), causal=True, backend=backend)

    before, after = run(k, v), run(jnp.where(mine, k + 1, k), jnp.where(mine, v - 3, v))
    assert (before[0, 100:290] == after[0, 100:290]).all() and (before[1] == after[1]).all()
    assert not np.allclose(before[0, :100], after[0, :100])


def test_causal_by_hand():
    """Equal scores: each query's output is the mean of the values it may see."""
    zeros, values = jnp.zeros((1, 4, 1, 2)), jnp.arange(8.0).reshape(1, 4, 1, 2)
    segments = jnp.array([[1, 1, 2, 2]])
    for backend in ("dense", "blocks", "loop"):
        out = attention.attend(zeros, zeros, values, segments, causal=True, backend=backend)
        np.testing.assert_allclose(out[0, :, 0], [[0, 1], [1, 2], [4, 5], [5, 6]], atol=1e-6)


def test_blocks_cover_every_query_once_and_skip_later_keys():
    assert block_attention._blocks(300, True) == [(0, 128, 128), (128, 256, 256), (256, 300, 300)]
    assert block_attention._blocks(300, False) == [(0, 128, 300), (128, 256, 300), (256, 300, 300)]
    assert len(block_attention._blocks(8192, True)) == 8
    assert len(block_attention._blocks(8199, True)) == 8  # not a ninth of seven queries


def test_bfloat16_stays_close_to_float32():
    q, k, v, g = inputs()
    q, k, v, half_g = (x.astype(jnp.bfloat16) for x in (q, k, v, g))
    whole_q, whole_k, whole_v = (x.astype(jnp.float32) for x in (q, k, v))
    _, expected = loss(whole_q, whole_k, whole_v, g, "dense", True)
    for backend in ("dense", "blocks", "loop"):
        _, out = loss(q, k, v, half_g, backend, True)
        assert out.dtype == jnp.bfloat16
        # measured 5.5e-4; 11.5e-4 where scores add up, or are left, in bfloat16
        error = np.asarray(out, np.float32) - np.asarray(expected)
        assert np.sqrt(np.mean(error**2)) < 8e-4, backend


def test_only_the_loop_goes_through_heads_one_by_one():
    """Batched over heads on accelerators: a loop in the program is a hundred launches."""

    def program(backend):
        run = functools.partial(loss, backend=backend, causal=True)
        return jax.jit(jax.grad(run, (0, 1, 2), has_aux=True)).lower(*inputs()).as_text()

    assert "stablehlo.while" in program("loop")
    assert "stablehlo.while" not in program("blocks")


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


def test_rotation_turns_halves_by_hand():
    config = RopeConfig(theta=100.0)  # frequencies 1 and 1/10 for a head of 4
    tables = attention.rotary_tables(config, 4, jnp.array([[0, 2]]))
    x = jnp.broadcast_to(jnp.array([1.0, 1.0, 0.0, 0.0]), (1, 2, 1, 4))
    out = attention.rotate(x, tables)
    np.testing.assert_allclose(out[0, 0, 0], [1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        out[0, 1, 0], [np.cos(2), np.cos(0.2), np.sin(2), np.sin(0.2)], atol=1e-6
    )
