"""Converts matrices to int8, with a scale for every block of 64 numbers, and back.

    matrix [L, D, F]   ->   values  int8      [L, D, F]        round(w / scale), -127 to 127
                            scales  bfloat16  [L, D / 64, F]   largest |w| of the block / 127

A number comes back within half a scale: 0.4 % of the largest of its block. Scales are rounded to
bfloat16 before the numbers are divided by them, so that bound is the same as with float32 scales,
at 1.03 bytes a number instead of 1.06: a scale that was rounded down by 1/256, the most there is,
leaves the largest number at 127.4961, which still rounds to 127.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import BFloat16, Float, Int8

BLOCK = 64
LARGEST = 127
SCALE = np.dtype(jnp.bfloat16)
BYTES = 1 + SCALE.itemsize / BLOCK  # of a number


class Int8Matrix(NamedTuple):
    """A matrix in int8; its blocks lie along the only axis on which the two shapes differ."""

    values: Int8[Any, "..."]
    scales: BFloat16[Any, "..."]


def quantised(matrix: Float[Any, "..."], axis: int) -> Int8Matrix:
    """A matrix in int8: numpy arrays of a numpy array, JAX arrays of a JAX array.

    Args:
        matrix: of any number format.
        axis: along which blocks lie; a multiple of BLOCK long.
    """
    xp = matrix.__array_namespace__()
    wide = matrix.astype(jnp.float32)
    scales = scales_of(wide, axis)
    divisors = xp.expand_dims(scales.astype(jnp.float32), axis + 1)
    usable = xp.isfinite(divisors) & (divisors > 0)  # NaN and infinity stay so by their scale
    blocks = _blocks(wide, axis, BLOCK)
    values = xp.where(usable, xp.round(blocks / xp.where(usable, divisors, 1.0)), 0.0)
    return Int8Matrix(values.astype(jnp.int8).reshape(matrix.shape), scales)


def scales_of(matrix: Float[Any, "..."], axis: int) -> BFloat16[Any, "..."]:
    """The scales of `quantised` alone."""
    xp = matrix.__array_namespace__()
    blocks = _blocks(matrix.astype(jnp.float32), axis, BLOCK)
    return (xp.max(xp.abs(blocks), axis=axis + 1) / LARGEST).astype(SCALE)


def dense(matrix: Float[Any, "..."] | Int8Matrix, dtype: Any) -> Float[Any, "..."]:
    """A matrix, in int8 or not, in `dtype`: products with a scale are exact, then rounded once."""
    if not isinstance(matrix, Int8Matrix):
        return matrix.astype(dtype)
    values, scales = matrix
    axis = block_axis(values.shape, scales.shape)
    blocks = _blocks(values, axis, BLOCK).astype(jnp.float32)
    scales = jnp.expand_dims(scales.astype(jnp.float32), axis + 1)
    return (blocks * scales).astype(dtype).reshape(values.shape)


def block_axis(values: tuple[int, ...], scales: tuple[int, ...]) -> int:
    """The axis along which blocks lie, of the two shapes."""
    return next(i for i, pair in enumerate(zip(values, scales, strict=True)) if pair[0] != pair[1])


def _blocks(x: Any, axis: int, size: int) -> jax.Array | np.ndarray:
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
