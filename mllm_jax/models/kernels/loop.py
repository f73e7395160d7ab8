"""Blockwise attention for long rows on CPUs: small products, dead blocks of keys skipped.

A block of queries meets the blocks of keys that it may see one after another; what was added up is
corrected as the largest score grows. Nothing larger than a block of scores exists, so that it stays
in a core's cache, and blocks that come later, or that no segment crosses, take no time:

    segments    1 1 1 1 | 1 2 2 2 | 2 2 3 3 | 3 3 0 0        keys ->  0 1 2 3
    blocks         0         1         2         3      queries  0    x
                                                                 1    x x
                                                                 2      x x
                                                                 3        x x

The backward pass recomputes the probabilities of one block from the log of each softmax's sum.
Method: Dao, FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2; here the backward pass goes by
queries too, and adds to the gradients of keys and values where they are.

The heads of a few rows are batched: enough for all cores, and few enough that rows whose segments
end at different places seldom keep each other's blocks alive.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mllm_jax.common.arithmetic import einsum
from mllm_jax.common.loops import at_most
from mllm_jax.models.kernels import blocks, masks, online, padding
from mllm_jax.models.kernels.protocol import SAVED, Backend, Call, refuses_nothing

SIZE = 128  # positions of a block
UNITS = 8  # key/value heads that are batched at least, where there are so many

# products that XLA's library for CPUs takes: the last dimension of the first factor is summed
_product = functools.partial(einsum, "uab,ubc->uac", out=jnp.float32)
_with_each = functools.partial(einsum, "uac,ubc->uab", out=jnp.float32)


class Saved(NamedTuple):
    """What the backward pass needs."""

    units: blocks.Units
    first: Int[Array, "n"]  # block of keys that a block of queries sees
    end: Int[Array, "n"]  # one behind the last
    out: Float[Array, "U T G H"]
    logsum: Float[Array, "U TG 1"]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """See `protocol.Run`."""
    B, T, N, H = q.shape
    K, length = k.shape[2], padding.whole_blocks(T, SIZE)
    q, k, v, segments = padding.longer_rows(q, k, v, segments, length)
    size = K * rows_together(B, K)
    units = blocks.units(q, k, v, segments)
    groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), units)
    out = jax.lax.map(functools.partial(_group, causal), groups)
    return blocks.heads(out.reshape(units.q.shape), (B, length, N, H))[:, :T]


def rows_together(rows: int, kv_heads: int) -> int:
    """How many rows are batched: 2 of 6 with four key/value heads, 3 of 3, 1 with eight."""
    divisors = (n for n in range(1, rows + 1) if rows % n == 0)
    return next(n for n in divisors if n * kv_heads >= UNITS or n == rows)


def _seen(
    segments: Int[Array, "U T"] | None, causal: bool, length: int
) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """`Saved.first` and `Saved.end`: what any of the units sees."""
    alive = functools.partial(masks.alive, causal=causal, length=length, size=SIZE)
    seen = alive(None) if segments is None else jnp.any(jax.vmap(alive)(segments), axis=0)
    first, behind = jnp.argmax(seen, axis=1), jnp.argmax(seen[:, ::-1], axis=1)
    return first.astype(jnp.int32), (length // SIZE - behind).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _group(causal: bool, units: blocks.Units) -> Float[Array, "U T G H"]:
    return _forward(causal, units)[0]


def _forward(causal: bool, units: blocks.Units) -> tuple[Array, Saved]:
    U, T, G, H = units.q.shape
    first, end = _seen(units.segments, causal, T)

    def of_queries(at: Any, written: tuple[Array, Array]) -> tuple[Array, Array]:
        rows = _rows(units.q, at)

        def with_keys(block: Any, sums: online.Sums) -> online.Sums:
            scores, values = _scores(causal, units, rows, at, block), _block(units.v, block)
            return online.add(sums, scores, lambda x: _product(x.astype(values.dtype), values))

        start = online.start((U, SIZE * G, H))
        with at_most(len(first)):
            out, logsum = online.done(jax.lax.fori_loop(first[at], end[at], with_keys, start))
        out = out.astype(units.q.dtype).reshape(U, SIZE, G, H)
        return _write(written[0], out, at), _write(written[1], logsum, at)

    empty = jnp.zeros_like(units.q), jnp.zeros((U, T * G, 1))
    out, logsum = jax.lax.fori_loop(0, len(first), of_queries, empty)
    out, logsum = checkpoint_name(out, SAVED), checkpoint_name(logsum, SAVED)
    return out, Saved(units, first, end, out, logsum)


def _backward(causal: bool, saved: Saved, d_out: Array) -> tuple[blocks.Units]:
    units, first, end, out, logsum = saved
    U, T, G, H = units.q.shape

    def of_queries(at: Any, written: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        rows, d_rows = _rows(units.q, at), _rows(d_out, at)
        by_width = rows.transpose(0, 2, 1), d_rows.transpose(0, 2, 1)
        logs = jax.lax.dynamic_slice_in_dim(logsum, at * SIZE * G, SIZE * G, 1)
        # softmax's own gradient needs sum_j w_j (d_out . v_j) = d_out . out
        shift = d_rows.astype(jnp.float32) * _rows(out, at).astype(jnp.float32)
        shift = jnp.sum(shift, axis=2, keepdims=True)

        def with_keys(block: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, ...]:
            d_queries, d_keys, d_values = sums
            weights = jnp.exp(_scores(causal, units, rows, at, block) - logs)
            d_weights = _with_each(d_rows, _block(units.v, block))
            d_scores = (weights * (d_weights - shift) / math.sqrt(H)).astype(units.q.dtype)
            return (
                d_queries + _product(d_scores, _block(units.k, block)),
                _add(d_keys, _product(by_width[0], d_scores), block),
                _add(d_values, _product(by_width[1], weights.astype(units.v.dtype)), block),
            )

        start = jnp.zeros((U, SIZE * G, H)), *written[1:]
        with at_most(len(first)):
            d_queries, *others = jax.lax.fori_loop(first[at], end[at], with_keys, start)
        d_queries = d_queries.astype(units.q.dtype).reshape(U, SIZE, G, H)
        return _write(written[0], d_queries, at), *others

    # those of keys and values by width, as the products give them
    empty = jnp.zeros_like(units.q), jnp.zeros((U, H, T)), jnp.zeros((U, H, T))
    d_q, d_k, d_v = jax.lax.fori_loop(0, len(first), of_queries, empty)
    d_k, d_v = (x.transpose(0, 2, 1).astype(units.k.dtype) for x in (d_k, d_v))
    return (blocks.Units(d_q, d_k, d_v, None),)


_group.defvjp(_forward, _backward)


def _scores(
    causal: bool, units: blocks.Units, rows: Float[Array, "U SG H"], at: Any, block: Any
) -> Float[Array, "U SG S"]:
    """Scaled, masked scores of a block of queries and one of keys, float32."""
    U, H, G = len(rows), rows.shape[2], units.q.shape[2]
    scores = _with_each(rows, _block(units.k, block)) / math.sqrt(H)
    allowed = []
    if units.segments is not None:
        queries, keys = _block(units.segments, at), _block(units.segments, block)
        allowed.append(queries[:, :, None] == keys[:, None, :])
    if causal:
        distance = jnp.arange(SIZE)[:, None] - jnp.arange(SIZE)[None, :]
        earlier = (at - block) * SIZE + distance >= 0
        allowed.append(jnp.broadcast_to(earlier[None], (U, SIZE, SIZE)))
    if not allowed:
        return scores
    seen = functools.reduce(jnp.logical_and, allowed)
    by_query = scores.reshape(U, SIZE, G, SIZE)
    return jnp.where(seen[:, :, None, :], by_query, masks.MASKED).reshape(scores.shape)


def _block(x: Array, block: Any) -> Array:
    """A block's positions of [U, T, ...]."""
    return jax.lax.dynamic_slice_in_dim(x, block * SIZE, SIZE, 1)


def _rows(x: Float[Array, "U T G H"], block: Any) -> Float[Array, "U SG H"]:
    """A block's queries, the G of a position one after another."""
    return _block(x, block).reshape(len(x), -1, x.shape[3])


def _write(x: Array, part: Array, block: Any) -> Array:
    """[U, T, ...] or [U, T * G, 1] with a block of the same kind written into it."""
    start = block * part.shape[1]
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, 1)


def _add(x: Float[Array, "U H T"], more: Float[Array, "U H S"], block: Any) -> Array:
    """Adds to a block's positions."""
    start = block * SIZE
    more = more + jax.lax.dynamic_slice_in_dim(x, start, SIZE, 2)
    return jax.lax.dynamic_update_slice_in_dim(x, more, start, 2)


def score_bytes(call: Call, /) -> int:
    """Scores and their gradient, float32, of a block of queries and one of keys."""
    heads = call.heads * rows_together(call.rows, call.kv_heads)
    return 2 * 4 * heads * SIZE**2


BACKEND = Backend(attend, refuses_nothing, score_bytes)
