"""GPU attention by tokamax's kernels in Mosaic: no scores in memory, nor blocks of other segments.

The kernel is told which keys each query sees, from one position to another, and goes through these
blocks alone. Heads that share keys read the same ones. Nothing limits the segments of a row:

    segments   1 1 2 2 2 0 3 0
    from       0 0 2 2 2 5 6 7        the beginning of a position's segment
    to         2 2 5 5 5 6 7 8        its end; the query itself where attention is causal

A package of its own: `pip install 'mllm-jax[tokamax]'`. It comes from the authors of JAX's Pallas,
whose attention in Triton names it as its successor.
"""

import functools
import importlib.util
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mllm_jax.models.kernels import padding
from mllm_jax.models.kernels.protocol import SAVED, Backend, Call, Device, Queries, named

PACKAGE = "tokamax"
EXTRA = "pip install 'mllm-jax[tokamax]'"
BLOCK = 128  # queries of the kernel's blocks: rows are whole ones
DTYPES = ("bfloat16", "float16")
WIDEST = 128  # head width for whose blocks shared memory has room, forward and backward
# Hopper; tokamax has kernels for Blackwell too, but the blocks of 0.0.12 do not fit there at 128
GENERATION = 9


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
    *rows, segments = padding.longer_rows(q, k, v, segments, padding.whole_blocks(T, BLOCK))
    first, behind = (None, None) if segments is None else spans(segments)
    # told of causality, the kernel stops at each query by itself
    out: Any = _attention(causal, *rows, first, None if causal else behind)
    return out[:, :T]


def attend_part(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    queries: Queries,
    segments: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """See `protocol.RunPart`."""
    (B, T), positions = q.shape[:2], queries.positions
    first = jnp.take(spans(segments)[0], positions, axis=1)
    behind = jnp.broadcast_to(positions[None] + 1, (B, T)).astype(first.dtype)
    length = padding.whole_blocks(T, BLOCK)
    q, first, behind = (padding.longer(x, length) for x in (q, first, behind))
    # queries that are added see the first key: the softmax of nothing is not a number
    out: Any = _attention(False, q, k, v, first, jnp.maximum(behind, 1))
    return out[:, :T]


def spans(segments: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Where each position's segment begins and ends; each is one run of positions."""
    T = segments.shape[1]
    positions = jnp.arange(T, dtype=jnp.int32)[None, :]
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(begins[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, positions, 0), axis=1)
    behind = jax.lax.cummin(jnp.where(ends, positions + 1, T), axis=1, reverse=True)
    return first, behind


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    causal: bool,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    first: Int[Array, "B T"] | None,
    behind: Int[Array, "B T"] | None,
) -> Any:
    """Attention to the keys from `first` on that are before `behind`."""
    return _forward(causal, q, k, v, first, behind)[0]


def _forward(causal: bool, *arrays: Any) -> tuple[Any, tuple[Any, ...]]:
    operation, call = _call(causal, *arrays)
    out, sums = operation(*call.args, **call.kwargs | {"return_residuals": True})
    out, *sums = (checkpoint_name(x, SAVED) for x in (out, *sums))
    return out, (arrays, out, tuple(sums))


def _backward(causal: bool, residuals: tuple[Any, ...], d_out: Any) -> tuple[Any, ...]:
    arrays, out, sums = residuals
    operation, call = _call(causal, *arrays)
    options = {name: x for name, x in call.kwargs.items() if name != "return_residuals"}
    gradients = operation.vjp(sums, out, d_out, *call.args, **options)
    return *(gradients[name] for name in "qkv"), None, None


_attention.defvjp(_forward, _backward)


def _call(causal: bool, q: Any, k: Any, v: Any, first: Any, behind: Any) -> tuple[Any, Any]:
    """The kernel, and its arguments as it completes them."""
    operation, Mask = _kernel()
    of_heads = lambda x: None if x is None else x[:, None, :]  # noqa: E731
    mask = Mask(k_start=of_heads(first), k_end=of_heads(behind), is_causal=causal)
    return operation, operation.bind(q, k, v, mask=mask, logits_scale=1 / math.sqrt(q.shape[3]))


@functools.cache
def _kernel() -> tuple[Any, Any]:
    """The operation, and its class of masks; not part of tokamax's public interface."""
    # imported here: it takes seconds to load, and other platforms never need it
    from absl import flags
    from tokamax._src.ops.attention import base, pallas_mosaic_gpu

    if not flags.FLAGS.is_parsed():  # otherwise tokamax parses this program's command line
        flags.FLAGS.mark_as_parsed()
    logging.getLogger("absl").addFilter(_is_not_of_tuning)
    return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention(), base.Mask


def _is_not_of_tuning(record: logging.LogRecord) -> bool:
    """Leaves out the page that tokamax logs of every shape that it was not tuned for."""
    return not str(record.msg).startswith("Autotuning cache miss")


def refuses(call: Call, device: Device, /) -> str | None:
    """Not a GPU of this generation; float32; wide heads; no tokamax."""
    if device.platform != "gpu":
        return f"needs a GPU, not a {device.platform}"
    if call.dtype not in DTYPES:
        return f"computes {' and '.join(DTYPES)}, not {call.dtype}"
    have = device.capability
    if have is None or have[0] != GENERATION:
        return f"needs compute capability {GENERATION}.x, this GPU's is {named(have)}"
    if call.head_dim > WIDEST:
        return f"needs head widths up to {WIDEST}, not {call.head_dim}"
    if importlib.util.find_spec(PACKAGE) is None:
        return f"is not installed ({EXTRA})"
    return None


def score_bytes(call: Call, /) -> int:
    """No scores: three sums of each query, float32.

    Gradients of keys and values, which the kernel gives for every head, are not counted: the MLP's
    arrays, which are more, are gone by then.
    """
    return 3 * 4 * call.rows * call.heads * padding.whole_blocks(call.length, BLOCK)


BACKEND = Backend(attend, refuses, score_bytes, run_part=attend_part, kernel=True)
