"""GPU attention by cuDNN's fused kernel: no scores in memory, the segments of a row by offsets.

cuDNN is told where the sequences of a row begin and how long they are. Their number is a shape of
the program, so it has a limit, M, which packing keeps (`data.row_examples`):

    segments   1 1 2 2 2 0 3 0        M = 4
    lengths    2 3 1 -1               tokens of segments 1, 2, ...; -1 behind the last one
    offsets    0 2 6 -1 -1            where they begin; JAX asks for M + 1

What no sequence covers is neither read nor written by the kernel, forward and backward: it must not
reach anything else.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.models.kernels import padding
from mllm_jax.models.kernels.protocol import Backend, Call, Device, older_than

FORWARD = "dot_product_attention_fwd_wrapper"  # the primitive that gives output and log-sums
DTYPES = ("bfloat16", "float16")
WIDEST = 128  # head width for which cuDNN has a backward pass on every GPU since Ampere
AMPERE, HOPPER = (8, 0), (9, 0)
# below, the offsets of keys are scaled by the number of query heads: other keys are read where
# several queries share one, without an error (jax-ml/jax#39521)
GROUPED = jax.__version_info__ >= (0, 11, 1)
LARGEST = 2**31  # offsets are int32 numbers of elements
ABSENT = -1  # length and offset of a segment that a row does not have


class Sequences(NamedTuple):
    """The segments of rows, as JAX's function for cuDNN takes them."""

    lengths: Int[Array, "B M"]
    offsets: Int[Array, "B M1"]  # M + 1, the last one ABSENT


def sequences(segments: Int[Array, "B T"], most: int) -> Sequences:
    """Lengths and offsets of segments 1 to `most`, each of which is one run of positions.

    Padding may be anywhere between them.
    """
    numbers = jnp.arange(1, most + 1, dtype=segments.dtype)
    inside = segments[:, None, :] == numbers[None, :, None]
    lengths = jnp.sum(inside, axis=2, dtype=jnp.int32)
    first = jnp.argmax(inside, axis=2).astype(jnp.int32)
    exists = lengths > 0
    offsets = jnp.where(exists, first, ABSENT)
    behind = jnp.full((segments.shape[0], 1), ABSENT, jnp.int32)
    return Sequences(jnp.where(exists, lengths, ABSENT), jnp.concatenate([offsets, behind], axis=1))


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
    most: int | None = None,
) -> Float[Array, "B T N H"]:
    """See `protocol.Run`.

    A row with more than `most` segments, which packing never makes, gives NaN: the run ends.
    """
    # imported here: it is not part of JAX's public interface, and other platforms never need it
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    T, (q, k, v) = q.shape[1], (_even(x) for x in (q, k, v))
    mask = "CAUSAL" if causal else "NO_MASK"
    arguments: dict[str, Any] = {}
    if segments is not None:
        assert most is not None, "packed rows need a limit of segments"
        segments = _even(segments)
        # the gradient of these zeros is zero too, whatever the kernel leaves there
        covered = (segments > 0)[:, :, None, None]
        q, k, v = (jnp.where(covered, x, jnp.zeros((), x.dtype)) for x in (q, k, v))
        if not GROUPED:
            k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        arguments = _packed(segments, most)
    elif q.shape[1] > T:
        lengths = jnp.full(q.shape[:1], T, jnp.int32)
        arguments = {"q_seqlen": lengths, "kv_seqlen": lengths}
    if arguments:
        mask = "PADDING_CAUSAL" if causal else "PADDING"
    out: Any = cudnn.dot_product_attention(
        *(q, k, v), **arguments, scale=1 / math.sqrt(q.shape[3]), mask_type=cudnn.MaskType[mask]
    )
    if segments is not None and most is not None:
        too_many = (segments > most)[:, :, None, None]
        out = jnp.where(too_many, jnp.asarray(jnp.nan, out.dtype), out)
    return out[:, :T]


def _even(x: Array) -> Array:
    """One more position, of zeros, where their number is odd: JAX has no gradient of such rows."""
    return padding.longer(x, x.shape[1] + x.shape[1] % 2)


def _packed(segments: Int[Array, "B T"], most: int) -> dict[str, Array]:
    """The arguments that say where sequences are."""
    lengths, offsets = sequences(segments, max(most, 2))  # of one, JAX would ignore the offsets
    of_queries = {"q_seqlen": lengths, "q_offsets": offsets}
    return {**of_queries, "kv_seqlen": lengths, "kv_offsets": offsets}


def refuses(call: Call, device: Device, /) -> str | None:
    """Not a GPU, or an old one; float32; wide heads; packed rows without a limit of segments."""
    if device.platform != "gpu":
        return f"needs a GPU, not a {device.platform}"
    if call.dtype not in DTYPES:
        return f"computes {' and '.join(DTYPES)}, not {call.dtype}"
    oldest = HOPPER if call.packed else AMPERE
    if reason := older_than(oldest, device):
        return f"{'packed rows need' if call.packed else 'needs'} {reason}"
    if call.head_dim % 8 or call.head_dim > WIDEST:
        return f"needs head widths that are multiples of 8 up to {WIDEST}, not {call.head_dim}"
    if call.packed and call.segments is None:
        return "needs a limit of examples in a row (data.row_examples)"
    if call.rows * call.length * call.heads * call.head_dim >= LARGEST:
        return f"addresses less than 2^31 numbers of queries a device, not {call.rows} rows"
    return None


def score_bytes(call: Call, /) -> int:
    """No scores: log-sums, float32, of each segment that a row may have; repeated keys, values.

    Those have gradients of their size. cuDNN's workspace is not known.
    """
    positions = call.rows * call.length * call.heads
    sums = 4 * positions * (max(call.segments or 1, 2) if call.packed else 1)
    repeated = call.packed and not GROUPED and call.heads > call.kv_heads
    return sums + (4 * 2 * positions * call.head_dim if repeated else 0)


def saves(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy of `jax.checkpoint` that keeps outputs and log-sums, which have no names here."""
    return primitive.name == FORWARD


BACKEND = Backend(attend, refuses, score_bytes, bounded=True, kernel=True)
