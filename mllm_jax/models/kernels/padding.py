"""Makes rows as long as a kernel's blocks want them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def whole_blocks(length: int, block: int) -> int:
    """The length of rows that are whole blocks: 577 positions are 640 of 128."""
    return -(-length // block) * block


def longer(x: Array, length: int) -> Array:
    """[B, T, ...] with zeros behind its positions, so that they are `length`."""
    return jnp.pad(x, [(0, length - size if axis == 1 else 0) for axis, size in enumerate(x.shape)])


def longer_rows(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    length: int,
) -> tuple[Array, Array, Array, Array | None]:
    """The arguments of attention for rows of `length`: what is added is padding, segment 0.

    Rows that were one whole segment each are segment 1 then; they stay without segments where
    nothing is added.
    """
    if segments is None and length > q.shape[1]:
        segments = jnp.ones(q.shape[:2], jnp.int32)
    q, k, v = (longer(x, length) for x in (q, k, v))
    return q, k, v, None if segments is None else longer(segments, length)
