"""Blockwise attention of one head after another, for long rows on CPUs.

There batched products of long rows are several times slower than plain ones.
"""

import functools

import jax
from jaxtyping import Array, Float, Int

from mllm_jax.models.kernels import blocks
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
    unit = functools.partial(blocks.unit, causal)
    out = jax.lax.map(lambda one: unit(*one), blocks.units(q, k, v, segments))
    return blocks.heads(out, q.shape)


def score_bytes(call: Call, /) -> int:
    """Scores and their gradient, float32, of one block of queries of one key/value head."""
    size = min(call.length, max(blocks.SMALLEST, -(-call.length // blocks.BLOCKS)))
    return 2 * 4 * call.heads // call.kv_heads * size * call.length


BACKEND = Backend(attend, refuses_nothing, score_bytes)
