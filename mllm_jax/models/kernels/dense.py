"""Dense attention: all scores at once. The reference; on CPUs the quickest for short rows."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.common.arithmetic import einsum
from mllm_jax.models.kernels import masks
from mllm_jax.models.kernels.protocol import Backend, Call, refuses_nothing


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
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    scores = einsum("BTKGH,BSKH->BKGTS", q, k, out=jnp.float32)
    scores = scores / math.sqrt(H)
    allowed = masks.visible(segments, causal, 0, T, 0, T)
    if allowed is not None:
        allowed = allowed.reshape(-1, 1, 1, T, T)  # of each row, or of all alike
        scores = jnp.where(allowed, scores, masks.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)


def score_bytes(call: Call, /) -> int:
    """Scores and their gradient, float32, of all queries and keys."""
    return 2 * 4 * call.rows * call.heads * call.length**2


BACKEND = Backend(attend, refuses_nothing, score_bytes)
