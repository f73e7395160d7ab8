"""Attention of a row that devices share: each part against dense attention over the whole row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.distributed import context
from mllm_jax.models import attention
from mllm_jax.models.kernels import context as kernel
from mllm_jax.models.kernels import dense, splash
from mllm_jax.models.kernels.select import Selection
from tests.support.attention_parts import case, compare, run


@pytest.mark.parametrize(("of_part", "parts"), [(dense.attend_part, 2), (kernel.attend_part, 4)])
def test_parts_are_the_whole(of_part, parts, monkeypatch):
    monkeypatch.setattr(kernel, "LARGEST", 4)  # three blocks a chunk
    compare(of_part, parts, *case(96), 1e-5)


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_tpu_kernel_interpreted(parts, monkeypatch):
    monkeypatch.setattr(splash, "LARGEST", 128)
    of_part = functools.partial(splash.attend_part, interpret=True)
    compare(of_part, parts, *case(256 * parts, 64), 2e-5)


def test_blocks_of_keys_that_are_computed():
    """Of the first to the last that a block of queries sees: segments of 3 and 5 blocks."""
    positions = context.positions(0, 2, 8)  # chunks 0 and 3 of four positions
    segments = jnp.asarray([[1] * 6 + [2] * 10])
    own = segments[:, positions]
    places = kernel.Places(
        positions.reshape(4, 2),
        own.reshape(1, 4, 2).swapaxes(0, 1),
        segments.reshape(1, 8, 2).swapaxes(0, 1),
    )
    seen = [
        kernel._through_keys(
            places, jnp.int32(i), lambda j, sums: sums.at[j].add(1), jnp.zeros(8, int)
        )
        for i in range(4)
    ]
    assert np.array(seen).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_devices_compute_as_many_blocks(parts):
    """A row of one segment."""
    segments = jnp.ones((1, 8 * parts), jnp.int32)
    counts = []
    for i in range(parts):
        positions = context.positions(i, parts, 8)
        blocks = jnp.ones((4, 1, 2), jnp.int32)
        places = kernel.Places(positions.reshape(4, 2), blocks, segments.reshape(-1, 1, 2))
        one = functools.partial(kernel._through_keys, places, add=lambda _, n: n + 1, start=0)
        counts.append(sum(int(one(jnp.int32(n))) for n in range(4)))
    assert set(counts) == {2 * (4 * parts + 1)}


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("blocks", {"data": 2, "tensor": 2, "context": 2}),
        pytest.param("dense", {"fsdp": 2, "context": 4}, marks=pytest.mark.slow),
        pytest.param("auto", {"data": 1, "context": 8}, marks=pytest.mark.slow),
    ],
)
def test_on_a_mesh(make_mesh, name, axes):
    """Rows, heads and lengths divided: the numbers of one device, in the order of the row."""
    arrays, segments = case(96)
    expected = run(functools.partial(dense.attend, causal=True), arrays, segments)

    def attend(q, k, v, segments):
        there = [context.balanced(x, *["none"] * (x.ndim - 2)) for x in (q, k, v, segments)]
        out = attention.attend(*there, causal=True, backend=Selection(name))
        return context.restored(out)

    with jax.set_mesh(make_mesh(**axes)):
        found = run(attend, arrays, segments)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)
