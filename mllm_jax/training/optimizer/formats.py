"""Number formats of Adam's moments: float32, bfloat16, or 8 bits with a scale for every block.

    float32   as it is
    bfloat16  rounded stochastically: with beta2 = 0.999 the second moment shrinks by at most 0.1 %
              a step, less than half a bfloat16 unit (0.2 to 0.4 %): to the nearest it never falls
    int8      1 byte a number and a float32 scale for a block of at most 256 along the last axis

In 8 bits a square law holds the first moment m and the root of the second one v, since an update is
the ratio of these two:

    m = largest * sign(q) (q / 127)^2      -127 <= q <= 127, largest |m| of the block
    v = largest * (q / 255)^4                 0 <= q <= 255, largest v of the block

Two codes are 1.6 % apart at the block's largest number, 16 % at an amplitude of a hundredth of it;
a linear code's distance there is 79 %. Both moments are rounded stochastically, so the mean of what
is held is right. A v above zero never becomes zero, but at least the smallest code: that is too
large, which makes the update smaller.

Blocks, and why each needs its own scale: Dettmers et al., 8-bit Optimizers via Block-wise
Quantization (arXiv 2110.02861); a code without zero for v: Li et al., Memory Efficient Optimizers
with 4-bit States (arXiv 2309.01507), section 4.1. Their codes are tables that are searched, which
TPUs do slowly; the square law is a product and a root.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, UInt32

from mllm_jax.training.optimizer.rounding import stochastic

BLOCK, SMALLEST = 256, 32  # numbers of a block at most and at least
FIRST, SECOND = 127, 255  # the largest code of either moment
TINY = float(jnp.finfo(jnp.float32).tiny)

Kind = Literal["float32", "bfloat16", "int8"]


class Blocks(NamedTuple):
    """A moment in 8 bits; also holds abstract arrays, or shardings."""

    codes: Any  # [..., n] int8 of a first moment, uint8 of a second one
    largest: Any  # [..., n / block] float32, of each block


def block_size(shape: tuple[int, ...]) -> int | None:
    """Numbers in a block of an array: the largest divisor of its last axis that is allowed.

    None where there is none: such arrays, of vectors mostly, stay in float32.
    """
    last = shape[-1] if shape else 1
    return next((n for n in range(BLOCK, SMALLEST - 1, -1) if last % n == 0), None)


def zeros(kind: Kind, shape: tuple[int, ...], second: bool) -> Any:
    """A moment of step 0, as it is stored."""
    size = block_size(shape)
    if kind != "int8" or size is None:
        return jnp.zeros(shape, jnp.bfloat16 if kind == "bfloat16" else jnp.float32)
    codes = jnp.zeros(shape, jnp.uint8 if second else jnp.int8)
    return Blocks(codes, jnp.zeros((*shape[:-1], shape[-1] // size), jnp.float32))


def dense(stored: Any) -> Float32[Array, "..."]:
    """A moment in float32."""
    if not isinstance(stored, Blocks):
        return stored.astype(jnp.float32)
    codes = _blocks(stored.codes.astype(jnp.float32), stored.largest.shape[-1])
    amounts = _second(codes) if stored.codes.dtype == jnp.uint8 else _first(codes)
    return (amounts * stored.largest[..., None]).reshape(stored.codes.shape)


def stored_like(stored: Any, x: Float32[Array, "..."], bits: UInt32[Array, "..."] | None) -> Any:
    """A moment as the one of the step before is stored.

    Args:
        stored: that one; its numbers are not read.
        x: the new moment.
        bits: random, of which the lower 16 count; None for float32.
    """
    if isinstance(stored, Blocks):
        assert bits is not None
        return _quantised(stored, x, bits)
    if stored.dtype == jnp.bfloat16:
        assert bits is not None
        return stochastic(x, bits)
    return x


def places(stored: Any, place: NamedSharding) -> Any:
    """The sharding of a moment whose parameter is at `place`: blocks are divided as it is.

    The largest of the blocks stay whole along the last axis where they do not divide over its
    devices.
    """
    if not isinstance(stored, Blocks):
        return place
    axes: Any = tuple(place.spec) + (None,) * (stored.largest.ndim - len(place.spec))
    try:
        whole = NamedSharding(place.mesh, P(*axes))
        whole.shard_shape(stored.largest.shape)
    except ValueError:
        whole = NamedSharding(place.mesh, P(*axes[:-1], None))
    return Blocks(place, whole)


def _blocks(x: Array, count: int) -> Array:
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)


def _first(codes: Float32[Array, "..."]) -> Float32[Array, "..."]:
    return codes * jnp.abs(codes) / FIRST**2


def _second(codes: Float32[Array, "..."]) -> Float32[Array, "..."]:
    return jnp.square(jnp.square(codes / SECOND))


def _quantised(stored: Blocks, x: Float32[Array, "..."], bits: UInt32[Array, "..."]) -> Blocks:
    second, count = stored.codes.dtype == jnp.uint8, stored.largest.shape[-1]
    blocks = _blocks(x, count)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    largest = jnp.where(largest >= TINY, largest, 0.0)
    amounts = jnp.abs(blocks) / jnp.where(largest > 0, largest, jnp.inf)[..., None]
    root, law, last = jnp.sqrt(amounts), _first, FIRST
    if second:
        root, law, last = jnp.sqrt(root), _second, SECOND
    below = jnp.clip(jnp.floor(root * last), 0, last - 1)
    low, high = law(below), law(below + 1)
    chance = (_blocks(bits & 0xFFFF, count).astype(jnp.float32) + 0.5) / 2**16
    codes = below + (chance < (amounts - low) / (high - low))
    if second:
        codes = jnp.where(amounts > 0, jnp.maximum(codes, 1.0), codes)
    else:
        codes = jnp.sign(blocks) * codes
    return Blocks(codes.astype(stored.codes.dtype).reshape(x.shape), largest)
