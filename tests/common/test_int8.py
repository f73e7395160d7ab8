"""Matrices in int8: how far a number moves at most, and what has no scale."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mllm_jax.common import int8


def matrix(shape, dtype=np.float32, seed=0) -> np.ndarray:
    """Numbers of very different sizes, the blocks' largest among them."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * 10.0 ** random.integers(-6, 6, shape)).astype(dtype)


def by_blocks(x: np.ndarray, axis: int) -> np.ndarray:
    """[blocks, ..., 64]"""
    blocks = np.stack(np.split(x, x.shape[axis] // int8.BLOCK, axis))
    return np.moveaxis(blocks, axis + 1, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((3, 128, 5), 1), ((2, 3, 4, 192), 3), ((64,), 0)])
def test_a_number_moves_by_half_a_scale_at_most(dtype, shape, axis):
    x = matrix(shape) if dtype != np.float16 else np.float32(matrix(shape) / 1e4)
    x = x.astype(dtype)
    held = int8.quantised(x, axis)
    assert held.values.dtype == np.int8 and held.scales.dtype == ml_dtypes.bfloat16
    assert held.values.shape == shape
    assert held.scales.size * 64 == x.size
    assert np.abs(held.values.astype(int)).max() <= 127
    x, back = x.astype(np.float64), np.asarray(int8.dense(held, jnp.float32), np.float64)
    scales = np.repeat(held.scales.astype(np.float64), 64, axis)
    assert np.all(np.abs(back - x) <= scales / 2 * (1 + 1e-6))
    largest = np.abs(by_blocks(x, axis)).max(-1, keepdims=True)
    error = np.abs(by_blocks(back, axis) - by_blocks(x, axis))
    assert np.all(error <= largest / 254 * (1 + 2.0**-8) * (1 + 1e-6))


def test_what_an_int8_number_holds_comes_back_to_the_bit():
    """Whole multiples of a power of two up to 127 of them."""
    numbers = np.arange(-127, 129, dtype=np.float32).reshape(4, 64).copy()
    numbers[3, -1] = 127
    numbers[:, 0] = [-127, 127, 127, 127]
    held = int8.quantised(numbers * 2.0**-9, 1)
    np.testing.assert_array_equal(held.values, numbers)
    np.testing.assert_array_equal(int8.dense(held, jnp.float32), numbers * 2.0**-9)


def test_on_devices_as_on_the_host():
    x = matrix((2, 128, 6))
    host, device = int8.quantised(x, 1), jax.jit(lambda x: int8.quantised(x, 1))(x)
    assert isinstance(host.values, np.ndarray)
    np.testing.assert_array_equal(device.values, host.values)
    np.testing.assert_array_equal(device.scales, host.scales)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_blocks_of_zeros_stay_so_and_one_that_is_not_finite_is_seen(dtype):
    x = np.ones((64, 4), dtype)
    x[:, 0], x[3, 1], x[5, 2], x[:, 3] = 0, np.nan, -np.inf, 1e-44
    x = np.concatenate([x, np.ones((64, 1), dtype)], axis=1)
    back = np.asarray(int8.dense(int8.quantised(x, 0), jnp.float32))
    assert not back[:, 0].any()
    assert not np.isfinite(back[:, 1:3]).any()
    assert np.abs(back[:, 3]).max() < 1e-38
    np.testing.assert_allclose(back[:, 4], 1, rtol=1 / 254)


def test_a_matrix_that_is_not_in_int8_is_cast():
    x = matrix((4, 4))
    assert int8.dense(jnp.asarray(x), jnp.bfloat16).dtype == jnp.bfloat16
