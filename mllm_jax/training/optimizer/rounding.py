"""Rounds float32 numbers to bfloat16 so that no change is lost in the long run.

A sum that changes by less than half a unit in the last place never moves when it is rounded to the
nearest number. bfloat16 has 8 bits: a weight loses every change below 0.2 to 0.4 % of it.

    stochastic   up or down by chance, in the ratio of the distances: right on average
    Kahan        to the nearest; what that leaves out is kept in a second bfloat16 number and is
                 added to the next change

Sources: Zamirai et al., Revisiting BFloat16 Training (arXiv 2010.06192), sections 4.1 and 4.2.

The random bits are a hash of update, path and place in the array. They are the same on every mesh
and in a resumed run, and the compiler computes them where they are used: JAX's own generators would
write 8 bytes a number to memory first on GPUs, or give other numbers on another mesh.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int32, UInt32

LEFT_OUT = 0xFFFF  # the bits of a float32 number that bfloat16 does not have
WORD = 0xFFFFFFFF
ODD = 0x9E3779B1  # 2^32 / golden ratio, the usual multiplier of hashes


class Noise(NamedTuple):
    """Where the random bits of one leaf in one update come from."""

    words: tuple[Any, Any]  # uint32 scalars, of the update and the leaf's path
    first: Any = 0  # index along the first axis at which the array at hand begins


def noise_of(path: str, step: Int32[Array, ""]) -> Noise:
    """The noise of a leaf in update `step`."""
    word = _mixed(jnp.uint32(zlib.crc32(path.encode())) + step.astype(jnp.uint32) * jnp.uint32(ODD))
    return Noise((_mixed(word), _mixed(word ^ jnp.uint32(ODD))))


def random_bits(noise: Noise, shape: tuple[int, ...], draw: int) -> UInt32[Array, "..."]:
    """32 random bits for every number of an array; `draw` tells apart arrays of one leaf.

    Every row (index along the first axis) has two words of its own, and every place in it a number,
    so that no two rows share a sequence of bits.
    """
    rows, *rest = shape or (1,)
    ones = [1] * len(rest)
    number = jnp.arange(rows, dtype=jnp.uint32) + jnp.uint32(noise.first)
    number = number + jnp.uint32(draw * ODD & WORD)
    first, second = (_mixed(_mixed(number) ^ word).reshape(rows, *ones) for word in noise.words)
    place = jnp.zeros((1, *ones), jnp.uint32)
    for axis, size in enumerate(rest, start=1):
        along = [size if i == axis else 1 for i in range(len(rest) + 1)]
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, along, axis)
    return _mixed(_mixed(place ^ first) + second).reshape(shape)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A hash of 32 bits: every bit of x changes every bit of the result in about half of all cases.

    Source: Wellons, hash-prospector, `lowbias32`.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def stochastic(x: Float32[Array, "..."], bits: UInt32[Array, "..."]) -> BFloat16[Array, "..."]:
    """Up or down by chance; the mean over all values of `bits` is x to the bit.

        x = 1 + 3/4 of a unit:  up for three quarters of the 2^16 values of the lower 16 bits

    Args:
        x: infinity and NaN stay as they are.
        bits: of which the lower 16 count.
    """
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & LEFT_OUT)
    cut = jax.lax.bitcast_convert_type(whole & jnp.uint32(WORD ^ LEFT_OUT), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def compensated(
    x: Float32[Array, "..."], change: Float32[Array, "..."], lost: BFloat16[Array, "..."]
) -> tuple[BFloat16[Array, "..."], BFloat16[Array, "..."]]:
    """x + change rounded to the nearest, and what that left out of the two and of `lost`.

    Args:
        x: a bfloat16 number.
        change: what is added.
        lost: what was left out the last time, 0 at first.
    """
    change = change + lost.astype(jnp.float32)
    # not two casts: compilers leave out a cast and its inverse
    after = jax.lax.reduce_precision(x + change, exponent_bits=8, mantissa_bits=7)
    return after.astype(jnp.bfloat16), (change - (after - x)).astype(jnp.bfloat16)
