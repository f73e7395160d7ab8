"""Blockwise attention: exact softmax attention without the T x T matrix, forward and backward.

Queries are taken in blocks; a causal block never touches keys that come after its end, which
halves the work. The forward pass keeps the output and the log of each softmax's sum; the backward
pass recomputes the probabilities of one block at a time from it. Method: Dao, FlashAttention-2
(arXiv 2307.08691), algorithms 1 and 2, with whole key ranges instead of key blocks, since a block's
scores fit into memory at the sizes used here.

One key/value head with its G queries is the unit: the G query heads are folded into the rows of
plain 2-D products. Units are batched by vmap, for accelerators; `loop` takes one after another.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mllm_jax.common.arithmetic import einsum
from mllm_jax.models.kernels import context, masks
from mllm_jax.models.kernels.protocol import SAVED, Backend, Call, refuses_nothing

# products of two matrices, added up and left in float32
_product = functools.partial(einsum, "ab,bc->ac", out=jnp.float32)
BLOCKS = 8  # query blocks of a row at most, so that the unrolled program stays small
SMALLEST = 128  # queries in a block at least


class Units(NamedTuple):
    """The B x K key/value heads of all rows, each with its G query heads."""

    q: Float[Array, "U T G H"]
    k: Float[Array, "U T H"]
    v: Float[Array, "U T H"]
    segments: Int[Array, "U T"] | None


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """See `protocol.Run`."""
    out = jax.vmap(functools.partial(unit, causal))(*units(q, k, v, segments))
    return heads(out, q.shape)


def units(q: Array, k: Array, v: Array, segments: Array | None) -> Units:
    """Heads apart: what `unit` is given, one after another or batched."""
    B, T, N, H = q.shape
    K = k.shape[2]
    if segments is not None:
        segments = jnp.broadcast_to(segments[:, None], (B, K, T)).reshape(B * K, T)
    return Units(
        q.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B * K, T, N // K, H),
        k.transpose(0, 2, 1, 3).reshape(B * K, T, H),
        v.transpose(0, 2, 1, 3).reshape(B * K, T, H),
        segments,
    )


def heads(out: Float[Array, "U T G H"], shape: tuple[int, ...]) -> Float[Array, "B T N H"]:
    """The outputs of all units as those of the heads, [B, T, N, H] = `shape`."""
    B, (_, T, G, H) = shape[0], out.shape
    return out.reshape(B, -1, T, G, H).transpose(0, 2, 1, 3, 4).reshape(shape)


def blocks(length: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, last query + 1, keys seen) of every block.

    Ten queries, causal, blocks of four: (0, 4, 4) (4, 8, 8) (8, 10, 10).
    """
    size = max(SMALLEST, -(-length // BLOCKS))
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(start, end, end if causal else length) for start, end in ends]


def _scores(
    q: Array, k: Array, segments: Array | None, block: tuple[int, int, int], causal: bool
) -> Array:
    """Scaled, masked scores of one block in float32: [(b G), keys]."""
    start, end, seen = block
    G, H = q.shape[1:]
    rows = q[start:end].reshape((end - start) * G, H)
    scores = _product(rows, k[:seen].T) / math.sqrt(H)
    allowed = masks.visible(segments, causal, start, end, 0, seen)
    if allowed is None:
        return scores
    return jnp.where(jnp.repeat(allowed, G, axis=0), scores, masks.MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unit(
    causal: bool,
    q: Float[Array, "T G H"],
    k: Float[Array, "T H"],
    v: Float[Array, "T H"],
    segments: Int[Array, "T"] | None,
) -> Float[Array, "T G H"]:
    """Attention of G query heads over one key/value head."""
    return _forward(causal, q, k, v, segments)[0]


def _forward(
    causal: bool, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, tuple]:
    T, G, H = q.shape
    outs, logsums = [], []
    for block in blocks(T, causal):
        scores = _scores(q, k, segments, block, causal)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _product(weights.astype(v.dtype), v[: block[2]]) / total
        outs.append(out.astype(q.dtype).reshape(-1, G, H))
        logsums.append(top + jnp.log(total))
    out = checkpoint_name(jnp.concatenate(outs), SAVED)
    logsums = tuple(checkpoint_name(logsum, SAVED) for logsum in logsums)
    return out, (q, k, v, segments, out, logsums)


def _backward(causal: bool, residuals: tuple, d_out: Array) -> tuple:
    q, k, v, segments, out, logsums = residuals
    T, G, H = q.shape
    d_queries = []
    d_keys, d_values = jnp.zeros((T, H), jnp.float32), jnp.zeros((T, H), jnp.float32)
    for block, logsum in zip(blocks(T, causal), logsums, strict=True):
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


unit.defvjp(_forward, _backward)


def score_bytes(call: Call, /) -> int:
    """Scores of all blocks of queries in every unit, float32; of one block of a part of a row.

    Blocks do not depend on each other, and compilers let them run side by side: their scores stay
    from a layer's second forward pass to its backward pass (read from compiled programs).
    """
    if call.parts > 1:
        return context.score_bytes(call)
    seen = sum((end - start) * keys for start, end, keys in blocks(call.length, call.causal))
    return 4 * call.rows * call.heads * seen


BACKEND = Backend(attend, refuses_nothing, score_bytes, run_part=context.attend_part)
