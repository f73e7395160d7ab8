"""The loop over blocks against dense attention, with blocks of eight positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models import attention
from mllm_jax.models.kernels import loop
from mllm_jax.models.kernels.select import Selection

T, H = 28, 8  # four blocks, the last half padding
LEFT = np.repeat([0, 1], [19, 9])  # a short prompt: padding before it
PACKED = np.repeat([1, 2, 3, 0], [11, 9, 5, 3])
ONE = np.ones(T, np.int64)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(loop, "SIZE", 8)
    monkeypatch.setattr(loop, "UNITS", 2)


def arrays(B, N, K):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def run(name, inputs, segments, causal):
    """Output and gradients."""
    q, k, v, g = inputs

    def loss(q, k, v):
        ids = None if segments is None else jnp.asarray(segments, jnp.int32)
        out = attention.attend(q, k, v, ids, causal=causal, backend=Selection(name))
        return jnp.sum(out * g), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def check(inputs, segments, causal):
    expected = run("dense", inputs, segments, causal)
    for ours, reference in zip(run("loop", inputs, segments, causal), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=5e-6)


@pytest.mark.parametrize(
    ("rows", "N", "K", "causal"),
    [
        ([PACKED, LEFT], 4, 2, True),  # two groups of one row
        ([LEFT, ONE, PACKED], 2, 1, False),  # one of three
    ],
)
def test_groups_of_rows_equal_dense(rows, N, K, causal):
    """Segments inside of blocks and across them, padding on either side."""
    check(arrays(len(rows), N, K), np.stack(rows), causal)


@pytest.mark.parametrize("causal", [True, False])
def test_whole_rows_of_a_length_that_is_no_multiple_of_a_block_equal_dense(causal):
    check(arrays(2, 2, 1), None, causal)


def test_the_blocks_that_are_seen():
    """By hand, four blocks of eight: segments 1 1 1 1 | 1 1 2 2 | 2 2 3 3 | 3 0 0 0."""
    segments = np.repeat([1, 2, 3, 0], [12, 8, 6, 6])[None]
    seen = functools.partial(loop._seen, length=32)

    def lists(segments, causal):
        ids = None if segments is None else jnp.asarray(segments)
        return [x.tolist() for x in seen(ids, causal)]

    assert lists(segments, True) == [[0, 0, 1, 2], [1, 2, 3, 4]]
    assert lists(segments, False) == [[0, 0, 1, 2], [2, 3, 4, 4]]
    assert lists(None, False) == [[0] * 4, [4] * 4]
    # of two rows what either sees
    both = np.concatenate([segments, np.repeat([1, 2], [16, 16])[None]])
    assert lists(both, True) == [[0, 0, 1, 2], [1, 2, 3, 4]]


def test_rows_that_are_batched(monkeypatch):
    monkeypatch.setattr(loop, "UNITS", 8)
    pairs = [(6, 4), (3, 4), (6, 8), (1, 1), (32, 1), (7, 2)]
    assert [loop.rows_together(*pair) for pair in pairs] == [2, 3, 1, 1, 8, 7]


def test_blocks_that_no_segment_crosses_are_not_computed():
    """What is in them, even not a number, changes nothing: no product is made with it."""
    q, k, v, g = arrays(1, 2, 1)
    segments = np.repeat([1, 2], [8, 20])[None]
    expected = run("loop", (q, k, v, g), segments, True)
    found = run("loop", (q, k.at[:, :8].set(jnp.nan), v.at[:, :8].set(jnp.nan), g), segments, True)
    for ours, reference in zip(found, expected, strict=True):
        assert np.all(np.isfinite(reference))
        np.testing.assert_array_equal(ours[0, 8:], reference[0, 8:])


@pytest.mark.slow
def test_eight_devices_are_one(make_mesh):
    """Rows and heads divided over a mesh."""
    segments = np.stack([PACKED, LEFT, ONE, PACKED])
    inputs = arrays(4, 4, 2)
    expected = run("loop", inputs, segments, True)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        found = run("loop", inputs, segments, True)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-6)
