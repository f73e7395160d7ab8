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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mllm_jax.models.kernels import masks, padding
from mllm_jax.models.kernels.protocol import SAVED, Backend, Call, Device, Queries

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
    padded = padding.whole_blocks(length, step)
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
    T, cut = q.shape[1], grid(q.shape[1])
    q, k, v, segments = padding.longer_rows(_scaled(q), k, v, segments, cut.length)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    run = functools.partial(_row, cut, causal, interpret)
    out = jax.vmap(run)(q, k, v, segments)
    return out.transpose(0, 2, 1, 3)[:, :T]


def attend_part(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    queries: Queries,
    segments: Int[Array, "B S"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """See `protocol.RunPart`; blocks of keys after a block of queries are dead too."""
    size = part_block(q.shape[1])
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (_scaled(q), k, v))

    def run(q: Array, k: Array, v: Array, of_queries: Array, of_keys: Array) -> Array:
        alive = masks.alive_part(queries.positions, of_queries, of_keys, size)
        infos = _infos(alive, queries.positions)
        return _kernel(size, True, interpret, infos)(q, k, v, (of_queries, of_keys))

    return jax.vmap(run)(q, k, v, queries.segments, segments).transpose(0, 2, 1, 3)


def part_block(length: int) -> int:
    """Positions of a block where a device has two runs of `length` / 2; 0 if none divides them."""
    sizes = range(LANES, LARGEST + 1, LANES)
    return max((size for size in sizes if length // 2 % size == 0), default=0)


def _scaled(q: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """The kernel does not scale."""
    return (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)


def _row(
    cut: Grid,
    causal: bool,
    interpret: bool,
    q: Float[Array, "N T H"],
    k: Float[Array, "K T H"],
    v: Float[Array, "K T H"],
    segments: Int[Array, "T"] | None,
) -> Float[Array, "N T H"]:
    kernel = _kernel(cut.block, causal, interpret, _mask_infos(cut, causal, segments))
    return kernel(q, k, v, None if segments is None else (segments, segments))


def _kernel(
    size: int, causal: bool, interpret: bool, infos: tuple[Any, Any]
) -> Callable[[Array, Array, Array, tuple[Array, Array] | None], Any]:
    """The kernel for blocks of `size`: queries, keys, values, segments of queries and keys."""
    # imported here: Pallas takes a second to load, and other platforms never need it
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), size),
        **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), size),
        **dict.fromkeys(("block_q_dq", "block_kv_dq"), size),
    )
    forward, backward = infos
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
    return lambda q, k, v, ids: kernel(q, k, v, None if ids is None else splash.SegmentIds(*ids))


def _earlier(queries: Array, keys: Array) -> Array:
    return queries >= keys


def _mask_infos(cut: Grid, causal: bool, segments: Array | None) -> tuple[Any, Any]:
    """What the kernel reads of blocks of whole rows, see `_infos`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask_info as mask_info,
    )

    positions: Any = jnp.arange(cut.length, dtype=jnp.int32) if causal else None
    if cut.blocks == 1 or (segments is None and not causal):
        info = mask_info.MaskInfo(None, None, None, None, positions)
        return info, info
    return _infos(masks.alive(segments, causal, cut.length, cut.block), positions)


def _infos(alive: Bool[Array, "n m"], positions: Any) -> tuple[Any, Any]:
    """What the kernel reads of blocks: by queries (output, their gradient), by keys (theirs).

    For a dead block `data_next` names the next one that is alive, so that nothing else is fetched.

    Args:
        alive: blocks of queries, of keys.
        positions: of the queries in their row, which hide later keys; None if nothing does.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask_info as mask_info,
    )

    number = alive.astype(jnp.int32)[None]  # alike for all heads
    keys, queries = _next_alive(alive), _next_alive(alive.T).T
    return (
        mask_info.MaskInfo(keys[None], None, number, None, positions),
        mask_info.MaskInfo(queries[None], None, number, None, positions),
    )


def _next_alive(alive: Bool[Array, "n m"]) -> Int[Array, "n m"]:
    """The column of the first true entry from each entry on, in reading order; 0 behind the last.

    No line is without one in a whole row: a block of queries sees its own keys.
    """
    size, columns = alive.size, alive.shape[1]
    order = jnp.arange(size, dtype=jnp.int32)
    entries = jnp.where(alive.reshape(-1), order, size)
    first = jax.lax.cummin(entries, reverse=True)
    return jnp.where(first < size, first % columns, 0).reshape(alive.shape)


def refuses(call: Call, device: Device, /) -> str | None:
    """Not a TPU; float32, whose products the kernel rounds to bfloat16."""
    if device.platform != "tpu":
        return f"needs a TPU, not a {device.platform}"
    if call.dtype != "bfloat16":
        return f"computes {call.dtype} products in bfloat16"
    if call.parts > 1 and not part_block(call.length):
        return (
            f"needs rows of a multiple of {2 * LANES * call.parts} tokens with mesh.context="
            f"{call.parts}, not {call.keys}"
        )
    return None


def score_bytes(call: Call, /) -> int:
    """None: scores stay in the chip's vector memory. The log-sums, float32, in full lanes."""
    length = grid(call.length).length if call.parts == 1 else call.length
    return 4 * call.rows * call.heads * length * LANES


BACKEND = Backend(attend, refuses, score_bytes, run_part=attend_part, kernel=True)
