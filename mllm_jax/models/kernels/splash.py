"""TPU attention by the splash kernel that comes with JAX: no scores in memory, skips dead blocks.

Blocks of keys that no segment of a block of queries reaches are neither computed nor fetched. The
kernel reads which ones from an array of its own, one for each row:

    segments    1 1 1 1 | 1 2 2 2 | 2 2 3 3 | 3 3 0 0        keys ->  0 1 2 3
    blocks         0         1         2         3      queries  0    x
                                                                 1    x x
                                                                 2      x x
                                                                 3        x x
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mllm_jax.models.kernels import masks
from mllm_jax.models.kernels.protocol import SAVED, Backend, Call, Device

LANES = 128  # blocks are multiples of a vector register's lanes
LARGEST = 640  # positions of a block at most; up to there a row is one block


class Grid(NamedTuple):
    """How a row is cut: padded to `length`, in blocks of `block`."""

    length: int
    block: int

    @property
    def blocks(self) -> int:
        return self.length // self.block


def grid(length: int) -> Grid:
    """The smallest padding that leaves blocks of at least 256 positions: 577 -> 640 in one.

    2,048 are 4 of 512; 1,152 are 3 of 384; 1,408 -> 1,536 are 3 of 512.
    """
    step = LANES if length <= LARGEST else 2 * LANES
    padded = -(-length // step) * step
    sizes = range(LANES, LARGEST + 1, LANES)
    return Grid(padded, max(size for size in sizes if padded % size == 0))


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
    B, T, _, H = q.shape
    cut = grid(T)
    if segments is None and cut.length > T:
        segments = jnp.ones((B, T), jnp.int32)
    q = (q.astype(jnp.float32) / math.sqrt(H)).astype(q.dtype)  # the kernel does not scale
    q, k, v = (_padded(x, cut.length).transpose(0, 2, 1, 3) for x in (q, k, v))
    run = functools.partial(_row, cut, causal, interpret)
    if segments is not None:
        segments = _padded(segments, cut.length)
    out = jax.vmap(run)(q, k, v, segments)
    return out.transpose(0, 2, 1, 3)[:, :T]


def _padded(x: Array, length: int) -> Array:
    """Zeros, which are padding's segment too, behind the positions of dimension 1."""
    return jnp.pad(x, [(0, length - x.shape[1] if n == 1 else 0) for n in range(x.ndim)])


def _row(
    cut: Grid,
    causal: bool,
    interpret: bool,
    q: Float[Array, "N T H"],
    k: Float[Array, "K T H"],
    v: Float[Array, "K T H"],
    segments: Int[Array, "T"] | None,
) -> Float[Array, "N T H"]:
    # imported here: Pallas takes a second to load, and other platforms never need it
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    size = cut.block
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), size),
        **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), size),
        **dict.fromkeys(("block_q_dq", "block_kv_dq"), size),
    )
    forward, backward = _mask_infos(cut, causal, segments)
    kernel = splash.SplashAttentionKernel(
        forward,
        forward,
        backward,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=SAVED,
        mask_function=_earlier if causal else None,
        interpret=interpret,
    )
    ids = None if segments is None else splash.SegmentIds(segments, segments)
    out: Any = kernel(q, k, v, ids)
    return out


def _earlier(queries: Array, keys: Array) -> Array:
    return queries >= keys


def _mask_infos(cut: Grid, causal: bool, segments: Array | None) -> tuple[Any, Any]:
    """What the kernel reads of blocks: by queries (output, their gradient), by keys (theirs).

    For a dead block `data_next` names the next one that is alive, so that nothing else is fetched.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask_info as mask_info,
    )

    positions: Any = jnp.arange(cut.length, dtype=jnp.int32) if causal else None
    if cut.blocks == 1 or (segments is None and not causal):
        info = mask_info.MaskInfo(None, None, None, None, positions)
        return info, info
    alive = masks.alive(segments, causal, cut.length, cut.block)
    number = alive.astype(jnp.int32)[None]  # alike for all heads
    keys, queries = _next_alive(alive), _next_alive(alive.T).T
    return (
        mask_info.MaskInfo(keys[None], None, number, None, positions),
        mask_info.MaskInfo(queries[None], None, number, None, positions),
    )


def _next_alive(alive: Bool[Array, "n n"]) -> Int[Array, "n n"]:
    """The column of the first true entry from each entry on, in reading order; 0 behind the last.

    No line is without one: a block of queries sees its own keys.
    """
    n = alive.shape[0]
    order = jnp.arange(n * n, dtype=jnp.int32)
    entries = jnp.where(alive.reshape(-1), order, n * n)
    first = jax.lax.cummin(entries, reverse=True)
    return jnp.where(first < n * n, first % n, 0).reshape(n, n)


def refuses(call: Call, device: Device, /) -> str | None:
    """Not a TPU; float32, whose products the kernel rounds to bfloat16."""
    if device.platform != "tpu":
        return f"needs a TPU, not a {device.platform}"
    if call.dtype != "bfloat16":
        return f"computes {call.dtype} products in bfloat16"
    return None


def score_bytes(call: Call, /) -> int:
    """None: scores stay in the chip's vector memory. The log-sums, float32, in full lanes."""
    cut = grid(call.length)
    return 4 * call.rows * call.heads * cut.length * LANES


BACKEND = Backend(attend, refuses, score_bytes)
