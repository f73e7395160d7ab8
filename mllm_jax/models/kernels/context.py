"""Blockwise attention of the queries that a device has of a row, over the keys of the whole row.

For the `context` axis, where no kernel of the platform can. A block of queries goes through the
blocks of keys that it sees, from that of its segments' first key to its own, and keeps a running
softmax; the backward pass goes the same way with the sums that the forward pass left:

    device 0 of 2 has chunks 0 and 3 of 4, here of two blocks each     keys ->  0 1 2 3 4 5 6 7
                                                       queries of block 0       x
                                                                        1       x x
                                                                        6       x x x x x x x
                                                                        7       x x x x x x x x

Device 1 computes 3 + 4 + 5 + 6 blocks: 18, as many as 1 + 2 + 7 + 8. Scores of one block of queries
and one of keys are in memory. Method: Dao, FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
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
from mllm_jax.models.kernels import masks, online
from mllm_jax.models.kernels.protocol import SAVED, Call, Queries

LARGEST = 512  # positions of a block at most

_product = functools.partial(einsum, out=jnp.float32)


class Places(NamedTuple):
    """Where queries and keys are, in blocks of `b`."""

    positions: Int[Array, "n b"]  # of the device's queries in their row
    queries: Int[Array, "n B b"]  # their segments
    segments: Int[Array, "m B b"]  # of the keys of whole rows


def attend_part(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    queries: Queries,
    segments: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """See `protocol.RunPart`."""
    (B, T, N, H), K = q.shape, k.shape[2]
    size = block_size(T)
    cut = functools.partial(_cut, size=size)
    positions = queries.positions.reshape(T // size, size)
    places = Places(positions, cut(queries.segments), cut(segments))
    out = _attend(cut(q.reshape(B, T, K, N // K, H)), cut(k), cut(v), places)
    return jnp.swapaxes(out, 0, 1).reshape(q.shape)


def block_size(length: int) -> int:
    """The largest divisor of both halves of a part of a row that is at most LARGEST."""
    half = length // 2
    return max(size for size in range(1, min(half, LARGEST) + 1) if half % size == 0)


def score_bytes(call: Call) -> int:
    """Scores and their gradient, float32, of one block of queries and one of keys."""
    return 2 * 4 * call.rows * call.heads * block_size(call.length) ** 2


def _cut(x: Array, size: int) -> Array:
    B, T, *rest = x.shape
    return jnp.swapaxes(x.reshape(B, T // size, size, *rest), 0, 1)


@jax.custom_vjp
def _attend(
    q: Float[Array, "n B b K G H"],
    k: Float[Array, "m B b K H"],
    v: Float[Array, "m B b K H"],
    places: Places,
) -> Float[Array, "n B b K G H"]:
    """Attention by blocks, whose number is the first dimension."""
    return _forward(q, k, v, places)[0]


def _forward(q: Array, k: Array, v: Array, places: Places) -> tuple[Array, tuple]:
    n, B, b, K, G, H = q.shape

    def of_queries(i: Array) -> tuple[Array, Array]:
        def add(j: Array, sums: online.Sums) -> online.Sums:
            values = functools.partial(_product, "BKGts,BsKH->BKGtH")
            scores = _scores(q, k, places, i, j)
            return online.add(sums, scores, lambda x: values(x.astype(v.dtype), v[j]))

        sums = _through_keys(places, i, add, online.start((B, K, G, b, H)))
        out, logsum = online.done(sums)
        return out.transpose(0, 3, 1, 2, 4).astype(q.dtype), logsum[..., 0]

    out, logsums = jax.lax.map(of_queries, jnp.arange(n))
    out, logsums = checkpoint_name(out, SAVED), checkpoint_name(logsums, SAVED)
    return out, (q, k, v, places, out, logsums)


def _backward(residuals: tuple, d_out: Array) -> tuple:
    q, k, v, places, out, logsums = residuals
    scale = 1 / math.sqrt(q.shape[-1])

    def of_queries(sums: Any, i: Array) -> tuple[Any, Array]:
        # softmax's own gradient needs sum_j w_j (d_out . v_j) = d_out . out
        both = d_out[i].astype(jnp.float32) * out[i].astype(jnp.float32)
        shift = jnp.sum(both, axis=-1).transpose(0, 2, 3, 1)[..., None]

        def add(j: Array, sums: Any) -> Any:
            d_q, d_k, d_v = sums
            weights = jnp.exp(_scores(q, k, places, i, j) - logsums[i][..., None])
            d_weights = _product("BtKGH,BsKH->BKGts", d_out[i], v[j])
            d_scores = (weights * (d_weights - shift) * scale).astype(q.dtype)
            d_q = d_q + _product("BKGts,BsKH->BtKGH", d_scores, k[j])
            d_k = d_k.at[j].add(_product("BKGts,BtKGH->BsKH", d_scores, q[i]))
            d_v = d_v.at[j].add(_product("BKGts,BtKGH->BsKH", weights.astype(v.dtype), d_out[i]))
            return d_q, d_k, d_v

        start = jnp.zeros(q.shape[1:], jnp.float32), *sums
        d_q, *sums = _through_keys(places, i, add, start)
        return tuple(sums), d_q.astype(q.dtype)

    zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (d_k, d_v), d_q = jax.lax.scan(of_queries, zeros, jnp.arange(q.shape[0]))
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _scores(q: Array, k: Array, places: Places, i: Array, j: Array) -> Float[Array, "B K G b b"]:
    """Scaled, masked scores of block i of the queries and block j of the keys, float32."""
    size = q.shape[2]
    scores = _product("BtKGH,BsKH->BKGts", q[i], k[j]) / math.sqrt(q.shape[-1])
    same = places.queries[i][:, :, None] == places.segments[j][:, None, :]
    earlier = j * size + jnp.arange(size)[None, :] <= places.positions[i][:, None]
    allowed = same & earlier[None]
    return jnp.where(allowed[:, None, None], scores, masks.MASKED)


def _through_keys(places: Places, i: Array, add: Any, start: Any) -> Any:
    """Folds `add(j, sums)` over the blocks of keys that block i of the queries sees.

    The first one is that of the first query's segment: a segment is in one piece.
    """
    last = places.positions[i, 0] // places.positions.shape[1]  # its own
    of_first = jnp.any(places.segments == places.queries[i][None, :, :1], axis=(1, 2))
    with at_most(len(places.segments)):
        return jax.lax.fori_loop(jnp.argmax(of_first), last + 1, add, start)
