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
    seen = jnp.ones((n, n), bool) if segments is None else _meet(segments, segments, size)
    return jnp.tril(seen) if causal else seen


def alive_part(
    positions: Int[Array, "T"], queries: Int[Array, "T"], segments: Int[Array, "S"], size: int
) -> Bool[Array, "n m"]:
    """`alive` for the queries of a part of a row, causal: [queries, keys].

    Args:
        positions: of the queries in the row; a block of them is one of the row's.
        queries: their segments.
        segments: of the keys, those of the whole row.
        size: positions of a block.
    """
    own = positions[::size] // size  # the number of each block in the row
    earlier = jnp.arange(segments.shape[0] // size)[None, :] <= own[:, None]
    return _meet(queries, segments, size) & earlier


def _meet(queries: Int[Array, "T"], keys: Int[Array, "S"], size: int) -> Bool[Array, "n m"]:
    """Which blocks may have a segment in common."""
    (low, high), (first, last) = _ends(queries, size), _ends(keys, size)
    return (low[:, None] <= last[None, :]) & (first[None, :] <= high[:, None])


def _ends(segments: Int[Array, "T"], size: int) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """The lowest and the highest segment of every block."""
    behind = jnp.where(segments == 0, jnp.iinfo(jnp.int32).max, segments)  # padding is behind
    by_block = behind.reshape(-1, size)
    return jnp.min(by_block, axis=1), jnp.max(by_block, axis=1)
