"""Blockwise attention: exact softmax attention without the T x T matrix, forward and backward.

Queries are taken in blocks; a causal block never touches keys that stand after its end, which
halves the work. The forward pass keeps the output and the log of each softmax's sum; the backward
pass recomputes the probabilities of one block at a time from it. Method: Dao, FlashAttention-2
(arXiv 2307.08691), algorithms 1 and 2, with whole key ranges instead of key blocks, since a block's
scores fit into memory at the sizes used here.

One key/value head with its G queries is the unit: the G query heads are folded into the rows of
plain 2-D products. Units are batched by vmap on accelerators and looped over on CPUs, where batched
products of long rows are several times slower.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.common.arithmetic import einsum

# products of two matrices, added up and left in float32
_product = functools.partial(einsum, "ab,bc->ac", out=jnp.float32)
MASKED = -1e30  # finite, so that a fully masked score never makes a NaN
BLOCKS = 8  # query blocks of a row at most, so that the unrolled program stays small
SMALLEST = 128  # queries in a block at least


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    causal: bool,
    loop: bool,
) -> Float[Array, "B T N H"]:
    """Self-attention within segments; see `attention.attend`.

    `loop`: one unit after another instead of all batched.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    units_q = q.reshape(B, T, K, G, H).transpose(0, 2, 1, 3, 4).reshape(B * K, T, G, H)
    units_k = k.transpose(0, 2, 1, 3).reshape(B * K, T, H)
    units_v = v.transpose(0, 2, 1, 3).reshape(B * K, T, H)
    units_s = jnp.broadcast_to(segments[:, None], (B, K, T)).reshape(B * K, T)
    unit = functools.partial(_unit, causal)
    if loop:
        out = jax.lax.map(lambda xs: unit(*xs), (units_q, units_k, units_v, units_s))
    else:
        out = jax.vmap(unit)(units_q, units_k, units_v, units_s)
    return out.reshape(B, K, T, G, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)


def _blocks(length: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, last query + 1, keys seen) of every block.

    Ten queries, causal, blocks of four: (0, 4, 4) (4, 8, 8) (8, 10, 10).
    """
    size = max(SMALLEST, -(-length // BLOCKS))
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(start, end, end if causal else length) for start, end in ends]


def _scores(
    q: Array, k: Array, segments: Array, block: tuple[int, int, int], causal: bool
) -> Array:
    """Scaled, masked scores of one block in float32: [(b G), keys]."""
    start, end, seen = block
    G, H = q.shape[1:]
    rows = q[start:end].reshape((end - start) * G, H)
    scores = _product(rows, k[:seen].T) / math.sqrt(H)
    allowed = segments[start:end, None] == segments[None, :seen]
    if causal:
        allowed = allowed & (jnp.arange(seen)[None, :] <= jnp.arange(start, end)[:, None])
    return jnp.where(jnp.repeat(allowed, G, axis=0), scores, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unit(
    causal: bool,
    q: Float[Array, "T G H"],
    k: Float[Array, "T H"],
    v: Float[Array, "T H"],
    segments: Int[Array, "T"],
) -> Float[Array, "T G H"]:
    return _forward(causal, q, k, v, segments)[0]


def _forward(causal: bool, q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, tuple]:
    T, G, H = q.shape
    outs, logsums = [], []
    for block in _blocks(T, causal):
        scores = _scores(q, k, segments, block, causal)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _product(weights.astype(v.dtype), v[: block[2]]) / total
        outs.append(out.astype(q.dtype).reshape(-1, G, H))
        logsums.append(top + jnp.log(total))
    out = jnp.concatenate(outs)
    return out, (q, k, v, segments, out, tuple(logsums))


def _backward(causal: bool, residuals: tuple, d_out: Array) -> tuple:
    q, k, v, segments, out, logsums = residuals
    T, G, H = q.shape
    d_queries = []
    d_keys, d_values = jnp.zeros((T, H), jnp.float32), jnp.zeros((T, H), jnp.float32)
    for block, logsum in zip(_blocks(T, causal), logsums, strict=True):
        start, end, seen = block
        rows = (end - start) * G
        d_rows = d_out[start:end].reshape(rows, H)
        weights = jnp.exp(_scores(q, k, segments, block, causal) - logsum)
        # softmax's own gradient needs sum_j w_j (d_out . v_j) = d_out . out
        shift = jnp.sum(
            d_rows.astype(jnp.float32) * out[start:end].reshape(rows, H).astype(jnp.float32),
            -1,
            keepdims=True,
        )
        d_weights = _product(d_rows, v[:seen].T)
        d_scores = (weights * (d_weights - shift) / math.sqrt(H)).astype(q.dtype)
        d_queries.append(_product(d_scores, k[:seen]).reshape(-1, G, H))
        block_keys = _product(d_scores.T, q[start:end].reshape(rows, H))
        block_values = _product(weights.astype(v.dtype).T, d_rows)
        # not .at[:seen].add: where that is all keys, its indices are an empty array, and jaxlib
        # 0.11.2 crashes when one enters a shard_map over several devices (CPU and GPU)
        later = ((0, T - seen), (0, 0))
        d_keys = d_keys + jnp.pad(block_keys, later)
        d_values = d_values + jnp.pad(block_values, later)
    return (
        jnp.concatenate(d_queries).astype(q.dtype),
        d_keys.astype(k.dtype),
        d_values.astype(v.dtype),
        None,
    )


_unit.defvjp(_forward, _backward)
