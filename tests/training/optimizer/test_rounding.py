"""Roundings that lose nothing in the long run, and the random bits behind one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.training.optimizer import rounding

UNIT = 2.0**-7  # of bfloat16 numbers between 1 and 2


def float32(x):
    return np.asarray(x.astype(jnp.float32))


def test_every_value_of_the_bits_counts_once():
    """1 + 3/4 of a unit: up for exactly three quarters of the 2^16 values; likewise below zero."""
    bits = jnp.arange(2**16, dtype=jnp.uint32)
    for sign in (1, -1):
        x = jnp.full(bits.shape, sign * (1 + 0.75 * UNIT), jnp.float32)
        rounded = float32(rounding.stochastic(x, bits)) * sign
        assert set(rounded) == {1.0, 1 + UNIT}
        assert (rounded > 1).sum() == 3 * 2**14


@pytest.mark.parametrize("x", [0.0, 1.0, -2.5, np.inf, -np.inf])
def test_bfloat16_numbers_stay(x):
    bits = jnp.asarray([0, 1, 0xFFFF, 0xFFFFFFFF], jnp.uint32)
    assert (float32(rounding.stochastic(jnp.full(4, x, jnp.float32), bits)) == x).all()


def test_nan_stays():
    bits = jnp.asarray([0, 0xFFFF], jnp.uint32)
    assert np.isnan(float32(rounding.stochastic(jnp.full(2, jnp.nan, jnp.float32), bits))).all()


def test_kahan_keeps_what_is_lost():
    """256 changes of 1/64 of a unit: to the nearest nothing would move; together they are 4 units.

    By hand: after 32 changes half a unit is kept; the 33rd rounds up to 1 unit, -31/64 are kept.
    """
    x, lost = jnp.ones(1, jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)
    step = jax.jit(rounding.compensated)
    after = []
    for _ in range(256):
        x, lost = step(x.astype(jnp.float32), jnp.full(1, UNIT / 64), lost)
        after.append((float32(x)[0], float32(lost)[0]))
    assert after[31] == (1.0, 0.5 * UNIT)
    assert after[32] == (1 + UNIT, -31 / 64 * UNIT)
    assert after[-1] == (1 + 4 * UNIT, 0.0)


def bits(path="language/w", step=3, shape=(8, 4096), draw=0, first=0):
    noise = rounding.noise_of(path, jnp.int32(step))._replace(first=jnp.int32(first))
    return np.asarray(rounding.random_bits(noise, shape, draw))


def test_bits_look_random_and_are_told_apart():
    """Each of 32 bits is set half of the time; leaf, step, draw and row give unrelated bits."""
    plain = bits()
    n = plain.size
    ones = [((plain >> i) & 1).mean() for i in range(32)]
    np.testing.assert_allclose(ones, 0.5, atol=5 / np.sqrt(4 * n))
    others = [bits(path="language/v"), bits(step=4), bits(draw=1), np.roll(plain, 1, 0)]
    others += [np.roll(plain, 1, 1), plain >> 16]
    for other in others:
        a, b = (x.astype(np.uint16).ravel() / 2**16 - 0.5 for x in (plain, other))
        assert abs((a * b).mean() * 12) < 5 / np.sqrt(n)
    np.testing.assert_array_equal(plain, bits())


def test_bits_are_of_the_place():
    """Some rows have the bits that they have in the whole; a vector and a scalar have some too."""
    np.testing.assert_array_equal(bits()[2:3], bits(shape=(1, 4096), first=2))
    assert bits(shape=(5,)).shape == (5,)
    assert bits(shape=()).shape == ()
    assert len(set(bits(shape=(4, 2, 3, 5)).ravel())) == 120
