"""The TPU kernel, interpreted on this machine, against dense attention in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models import attention
from mllm_jax.models.kernels import dense, masks, select, splash
from mllm_jax.models.kernels.protocol import Backend, Call, Device, refuses_nothing
from mllm_jax.models.kernels.select import Selection

TPU = Device("tpu")
CALL = Call(2, 2048, 32, 8, 128, "bfloat16", causal=True, packed=True)


def arrays(B, T, N, K, H):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def run(attend, inputs, segments, causal):
    """Output and gradients; nothing comes back to padding, as `select.run` sees to."""
    q, k, v, g = inputs
    shown = 1.0 if segments is None else (segments > 0)[:, :, None, None]

    def loss(q, k, v):
        out = attend(q, k, v, segments, causal=causal) * shown
        return jnp.sum(out * g), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def compare(inputs, segments, causal):
    interpreted = functools.partial(splash.attend, interpret=True)
    expected = run(dense.attend, inputs, segments, causal)
    for ours, reference in zip(run(interpreted, inputs, segments, causal), expected, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, reference, atol=2e-5)


def test_packed_rows_with_grouped_queries_padding_and_dead_blocks(monkeypatch):
    """Four blocks; of the first row six of ten that are causal are alive, of the second all."""
    monkeypatch.setattr(splash, "LARGEST", 128)
    segments = np.zeros((2, 450), np.int32)
    segments[0, :128], segments[0, 128:300], segments[0, 300:380], segments[1] = 1, 2, 3, 1
    padded = jnp.asarray(np.pad(segments, [(0, 0), (0, 62)]))
    alive = [np.asarray(masks.alive(row, True, 512, 128)) for row in padded]
    assert [int(row.sum()) for row in alive] == [6, 10]
    compare(arrays(2, 450, 4, 2, 64), jnp.asarray(segments), True)


def test_whole_images_of_a_length_that_is_no_multiple_of_a_block():
    """As CLIP's 577 positions: padded, not causal, one block."""
    compare(arrays(1, 145, 2, 2, 64), None, False)


@pytest.mark.slow
def test_clip_at_336_pixels():
    compare(arrays(2, 577, 4, 4, 64), None, False)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_several_blocks_without_segments(monkeypatch, causal):
    monkeypatch.setattr(splash, "LARGEST", 128)
    compare(arrays(1, 512, 2, 1, 128), None, causal)


@pytest.mark.slow
def test_eight_devices_are_one(monkeypatch, make_mesh):
    """Rows and heads divided over a mesh, dead blocks of each row by itself."""
    monkeypatch.setattr(splash, "LARGEST", 128)
    interpreted = functools.partial(splash.attend, interpret=True)
    backend = Backend(interpreted, refuses_nothing, splash.score_bytes)
    monkeypatch.setitem(select.BACKENDS, "splash", backend)
    attend = functools.partial(attention.attend, backend=Selection("splash"))
    segments = np.ones((4, 256), np.int32)
    segments[0, 128:], segments[1, 100:], segments[2, 30:200] = 2, 0, 2
    inputs = arrays(4, 256, 4, 2, 64)
    expected = run(attend, inputs, jnp.asarray(segments), True)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        found = run(attend, inputs, jnp.asarray(segments), True)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(577, (640, 640)), (64, (128, 128)), (2048, (2048, 512)), (1408, (1536, 512))],
)
def test_rows_are_cut_into_blocks_that_divide_them(length, expected):
    assert splash.grid(length) == expected


def test_a_dead_block_names_the_next_one_alive():
    alive = jnp.array([[True, False, False], [False, True, False], [True, False, True]])
    assert splash._next_alive(alive).tolist() == [[0, 1, 1], [1, 1, 0], [0, 2, 2]]


def test_alive_blocks_are_never_too_few():
    """Against every pair of positions, for segments in their order with padding on either side."""
    for ids in (
        [1, 1, 1, 2, 2, 2, 3, 0],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0] * 8,
        [1, 2, 3, 4, 5, 6, 7, 8],
    ):
        row = np.array(ids, np.int32)
        pairs = np.tril(row[:, None] == row[None, :])
        expected = pairs.reshape(4, 2, 4, 2).any(axis=(1, 3))
        alive = np.asarray(masks.alive(jnp.asarray(row), True, 8, 2))
        assert np.all(alive >= expected)
    assert masks.alive(jnp.array([1, 1, 2, 2, 3, 3]), False, 6, 2).tolist() == np.eye(3).tolist()


def test_what_it_refuses():
    assert splash.refuses(CALL, TPU) is None
    assert splash.refuses(CALL, Device("cpu")) == "needs a TPU, not a cpu"
    refusal = splash.refuses(CALL._replace(dtype="float32"), TPU)
    assert refusal == "computes float32 products in bfloat16"
