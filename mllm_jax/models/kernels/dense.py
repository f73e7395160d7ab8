"""Dense attention: all scores at once. The reference; on CPUs the quickest for short rows."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.common.arithmetic import einsum
from mllm_jax.models.kernels import masks
from mllm_jax.models.kernels.protocol import Backend, Call, Queries, refuses_nothing


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """See `protocol.Run`."""
    T = q.shape[1]
    return _attend(q, k, v, masks.visible(segments, causal, 0, T, 0, T))


def attend_part(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    queries: Queries,
    segments: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """See `protocol.RunPart`."""
    same = queries.segments[:, :, None] == segments[:, None, :]
    earlier = jnp.arange(k.shape[1])[None, :] <= queries.positions[:, None]
    return _attend(q, k, v, same & earlier[None])


def _attend(q: Array, k: Array, v: Array, allowed: Array | None) -> Array:
    (B, T, N, H), (_, S, K, _) = q.shape, k.shape
    q = q.reshape(B, T, K, N // K, H)
    scores = einsum("BTKGH,BSKH->BKGTS", q, k, out=jnp.float32)
    scores = scores / math.sqrt(H)
    if allowed is not None:
        allowed = allowed.reshape(-1, 1, 1, T, S)  # of each row, or of all alike
        scores = jnp.where(allowed, scores, masks.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)


def score_bytes(call: Call, /) -> int:
    """Scores and their gradient, float32, of all queries and keys."""
    return 2 * 4 * call.rows * call.heads * call.length * call.keys


BACKEND = Backend(attend, refuses_nothing, score_bytes, run_part=attend_part)
