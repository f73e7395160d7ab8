"""GPU attention by the Pallas kernel in Triton that comes with JAX: no scores in memory.

For GPUs before Hopper, and where cuDNN is not wanted. The kernel knows segments, but not that
several heads of queries share keys: these are repeated, and their gradients added up in float32.
Blocks of other segments are computed and masked.
"""

import functools
import importlib
import importlib.util
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mllm_jax.models.kernels import padding
from mllm_jax.models.kernels.protocol import SAVED, Backend, Call, Device, older_than

MODULE = "jax.experimental.pallas.ops.gpu.attention"
BLOCK = 128  # positions of the kernel's blocks; shorter rows are one block
SMALLEST = 32  # of those of its backward pass
DTYPES = ("bfloat16", "float16")
WIDTHS = (16, 32, 64, 128)  # of heads: Triton's arrays have powers of two
AMPERE = (8, 0)


class Kind(NamedTuple):
    """What is fixed when the program is compiled."""

    causal: bool
    interpret: bool


def padded(length: int) -> int:
    """The length of rows as the kernel takes them: 577 -> 640, 40 -> 64."""
    if length > BLOCK:
        return padding.whole_blocks(length, BLOCK)
    return max(SMALLEST, 1 << (length - 1).bit_length())


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See `protocol.Run`.

    Args:
        q, k, v, segments, causal: likewise.
        interpret: compute with plain operations, for tests on other platforms.
    """
    T = q.shape[1]
    rows = padding.longer_rows(q, k, v, segments, padded(T))
    out: Any = _attention(Kind(causal, interpret), *rows)
    return out[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(kind: Kind, q: Any, k: Any, v: Any, segments: Any) -> Any:
    return _forward(kind, q, k, v, segments)[0]


def _forward(kind: Kind, q: Any, k: Any, v: Any, segments: Any) -> tuple[Any, tuple[Any, ...]]:
    heads = q.shape[2]
    options = _options(kind, q.shape[3])
    _, kept = _kernel()._mha_forward(
        q, _repeated(k, heads), _repeated(v, heads), segments, *options
    )
    out, sums = (checkpoint_name(x, SAVED) for x in kept[-2:])
    return out, (q, k, v, segments, out, sums)


def _backward(kind: Kind, residuals: tuple[Any, ...], d_out: Any) -> tuple[Any, ...]:
    q, k, v, segments, out, sums = residuals
    heads, options = q.shape[2], _options(kind, q.shape[3])
    kept = q, _repeated(k, heads), _repeated(v, heads), segments, out, sums
    d_q, d_k, d_v, _ = _kernel()._mha_backward(*options, kept, d_out)
    return d_q, _added_up(d_k, k), _added_up(d_v, v), None


_attention.defvjp(_forward, _backward)


def _options(kind: Kind, head_dim: int) -> tuple[Any, ...]:
    """The kernel's arguments, in its order: the defaults, except for scale, mask and platform."""
    sizes, backward = _kernel().BlockSizes.get_default(), "triton"
    warps, stages, grid, debug, log_sums = None, 2, None, False, False
    scale = 1 / math.sqrt(head_dim)
    first = scale, kind.causal, sizes, backward, warps, stages, grid
    return (*first, kind.interpret, debug, log_sums)


@functools.cache
def _kernel() -> Any:
    # imported here: Pallas takes a second to load, and other platforms never need it
    with warnings.catch_warnings():  # JAX 0.12 names tokamax as its successor
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(MODULE)


def _repeated(x: Float[Array, "B T K H"], heads: int) -> Float[Array, "B T N H"]:
    """Keys or values for every head of queries."""
    return jnp.repeat(x, heads // x.shape[2], axis=2)


def _added_up(
    gradient: Float[Array, "B T N H"], like: Float[Array, "B T K H"]
) -> Float[Array, "B T K H"]:
    """The gradient of what `_repeated` was given."""
    B, T, K, H = like.shape
    groups = gradient.reshape(B, T, K, -1, H)
    return jnp.sum(groups, axis=3, dtype=jnp.float32).astype(like.dtype)


def refuses(call: Call, device: Device, /) -> str | None:
    """Not a GPU, or an old one; float32, whose products Triton rounds; other head widths."""
    if device.platform != "gpu":
        return f"needs a GPU, not a {device.platform}"
    if call.dtype not in DTYPES:
        return f"computes {call.dtype} products in TF32"
    if reason := older_than(AMPERE, device):
        return f"needs {reason}"
    if call.head_dim not in WIDTHS:
        return f"needs head widths of {', '.join(map(str, WIDTHS))}, not {call.head_dim}"
    if importlib.util.find_spec(MODULE) is None:
        return f"is not part of JAX {jax.__version__}"
    return None


def score_bytes(call: Call, /) -> int:
    """No scores: log-sums and the sums of the backward pass, float32; repeated keys and values.

    Those have gradients of their size.
    """
    positions = call.rows * padded(call.length) * call.heads
    repeated = 4 * 2 * positions * call.head_dim if call.heads > call.kv_heads else 0
    return 2 * 4 * positions + repeated


BACKEND = Backend(attend, refuses, score_bytes, kernel=True)
