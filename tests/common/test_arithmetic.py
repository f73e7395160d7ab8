"""Sums over thousands of rows in bfloat16 runs, against float64; the precision of products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common import arithmetic

HALF = 2.0**-8  # relative error of one rounding to bfloat16 at most
DTYPES = [jnp.float32, jnp.bfloat16]


def weighted(result, dy):
    """A scalar whose gradient by `result` is dy."""
    return jnp.sum(result * dy, dtype=jnp.float32)


def assert_sums(got, want, dtype):
    """Float32 sums, rounded once where the parameter is held in bfloat16."""
    assert got.dtype == dtype
    error = np.abs(np.asarray(got.astype(jnp.float32), np.float64) - want)
    assert (error <= (HALF if dtype == jnp.bfloat16 else 1e-5) * np.abs(want).max(initial=0)).all()
    norm = np.linalg.norm(error) / np.linalg.norm(want)
    assert norm < (0.003 if dtype == jnp.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (576, 4)], ids=str)
def test_what_all_rows_share_gets_the_sum_of_their_gradients(shape, dtype):
    """A bias (also of heads x width) and a table of positions, positive addends: the worst case."""
    rng = np.random.default_rng(0)
    rows = (48,) if shape[0] == 576 else (48, 576)
    dy = jnp.asarray(np.abs(rng.standard_normal((*rows, *shape))), jnp.bfloat16)
    x, shared = jnp.ones(dy.shape, jnp.bfloat16), jnp.full(shape, 0.3, dtype)

    @jax.jit
    def both(x, shared):
        return jax.grad(lambda x, s: weighted(arithmetic.add_shared(x, s), dy), (0, 1))(x, shared)

    d_x, d_shared = both(x, shared)
    exact = np.asarray(dy.astype(jnp.float32), np.float64).sum(tuple(range(len(rows))))
    assert_sums(d_shared, exact, dtype)
    np.testing.assert_array_equal(d_x, dy)
    assert (arithmetic.add_shared(x, shared) == jnp.bfloat16(1) + jnp.bfloat16(0.3)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_word_gets_the_sum_of_all_its_uses(dtype):
    """32,768 words by Zipf's law; and one that is all of them."""
    rng, words, width, count = np.random.default_rng(0), 64, 8, 32_768
    frequency = 1 / np.arange(1, words + 1)
    tokens = rng.choice(words, (16, count // 16), p=frequency / frequency.sum())
    tokens = jnp.asarray(tokens, jnp.int32)
    dy = jnp.asarray(rng.standard_normal((*tokens.shape, width)) + 0.1, jnp.bfloat16)
    table = jnp.asarray(rng.standard_normal((words, width)), dtype)

    @jax.jit
    def gradient(table, tokens, dy):
        taken = lambda t: weighted(arithmetic.take_rows(t, tokens, jnp.bfloat16), dy)  # noqa: E731
        return jax.grad(taken)(table)

    exact = np.zeros((words, width))
    np.add.at(exact, np.asarray(tokens), np.asarray(dy.astype(jnp.float32), np.float64))
    assert_sums(gradient(table, tokens, dy), exact, dtype)
    once = gradient(table, jnp.zeros_like(tokens), jnp.ones_like(dy))
    np.testing.assert_array_equal(once[0], count)  # in bfloat16 sums: 256
    taken = arithmetic.take_rows(table, tokens, jnp.bfloat16)
    np.testing.assert_array_equal(taken, table.astype(jnp.bfloat16)[tokens])


def test_the_dtype_of_the_factors_decides_the_precision():
    def precisions(x, y):
        text = jax.jit(lambda x, y: arithmetic.einsum("ab,bc->ac", x, y)).lower(x, y).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    whole, half = jnp.ones((2, 2)), jnp.ones((2, 2), jnp.bfloat16)
    (exact,), (fast,) = precisions(whole, whole), precisions(half, half)
    assert "precision = [HIGHEST, HIGHEST]" in exact
    assert "HIGHEST" not in fast
    assert arithmetic.einsum("ab,bc->ac", half, half).dtype == jnp.bfloat16
    assert arithmetic.einsum("ab,bc->ac", half, half, out=jnp.float32).dtype == jnp.float32
