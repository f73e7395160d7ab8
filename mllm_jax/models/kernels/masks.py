"""Masks of scores, for the backends that compute scores themselves."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MASKED = -1e30  # finite, so that a fully masked score never makes a NaN


def visible(
    segments: Int[Array, "*B T"] | None, causal: bool, start: int, end: int, first: int, last: int
) -> Bool[Array, "*B Q S"] | None:
    """Which keys first..last the queries start..end see; None where they see all of them.

    Args:
        segments: of whole rows, or None where each row is one segment.
        causal: whether later keys are hidden.
        start, end: the queries, end excluded.
        first, last: the keys, last excluded.
    """
    allowed = None
    if segments is not None:
        queries, keys = segments[..., start:end], segments[..., first:last]
        allowed = queries[..., :, None] == keys[..., None, :]
    if causal and last > start + 1:
        earlier = jnp.arange(first, last)[None, :] <= jnp.arange(start, end)[:, None]
        if allowed is None:
            return earlier
        allowed = allowed & jnp.broadcast_to(earlier, allowed.shape)
    return allowed


def alive(
    segments: Int[Array, "T"] | None, causal: bool, length: int, size: int
) -> Bool[Array, "n n"]:
    """Which blocks of keys a block of queries may see: [queries, keys].

    True wherever two positions are of one segment, and perhaps elsewhere: blocks are compared by
    their lowest and highest segment, which is exact where segments are numbered in their order.

    Args:
        segments: of one row, or None where it is one segment.
        causal: whether later keys are hidden.
        length: T, a multiple of `size`.
        size: positions of a block.
    """
    n = length // size
    if segments is None:
        seen = jnp.ones((n, n), bool)
    else:
        last = jnp.where(segments == 0, jnp.iinfo(jnp.int32).max, segments)  # padding is behind
        by_block = last.reshape(n, size)
        low, high = jnp.min(by_block, axis=1), jnp.max(by_block, axis=1)
        seen = (low[:, None] <= high[None, :]) & (low[None, :] <= high[:, None])
    return jnp.tril(seen) if causal else seen
