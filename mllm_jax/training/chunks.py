"""Works through the positions of a batch a chunk at a time, their gradients included.

For what needs logits, the largest array of a step: those of one chunk are alive at a time, and the
loop that makes them also takes their gradients to the hidden states and to the head:

    positions that count before all others
    for each chunk that holds one:
        values[chunk], d_hidden[chunk], d_head += ...

What does not count (questions, images, padding) costs no product. How much that is differs from
step to step: the loop's length is a number of the batch, its bound one of the program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mllm_jax.common.loops import at_most
from mllm_jax.distributed.collectives import per_device, reduced, token_axes

# a chunk is an eighth of a device's positions or less, but no product of fewer than 512 rows
PARTS, SMALLEST = 8, 512


class How(NamedTuple):
    """Static numbers of a loop."""

    chunk: int  # at most so many positions times rows at a time
    reduce: Any  # dtype in which the head's gradient is summed over devices


# (positions [n], flat arrays, head, d head, which gradients are needed) ->
# (d head with theirs added, values [n], d hidden of some positions: [(positions [n], [n D])])
Work = Callable[..., tuple[Any, Any, list[tuple[Any, Any]]]]


def in_chunks(
    work: Work,
    how: How,
    needed: tuple[bool, bool],
    hidden: Any,
    head: Any,
    counts: Any,
    *arrays: Any,
) -> tuple[Any, Any, Any]:
    """Every position's value, and the gradients of their sum.

    Every device works on its own rows and its own part of the vocabulary. The head is gathered over
    fsdp once, before the loop, and its gradient summed over the devices once, after it.

    Args:
        work: what a chunk needs. A position behind all others is one that does not count: nothing
            is there to be read, and nothing is written.
        how: see `How`.
        needed: whether the hidden states' gradient is, and the head's.
        hidden: [B T D], in compute dtype.
        head: [V D], as it is held.
        counts: [B T], which positions are worked on.
        arrays: [B T] each, more of the positions.

    Returns:
        Values [B T], 0 where a position does not count; d hidden or None, d head or None.
    """
    rows = ("batch", "length")
    names = (*rows, "none"), ("vocab", "none"), *[rows] * (1 + len(arrays))
    outputs = rows, names[0] if needed[0] else None, ("vocab", "embed") if needed[1] else None
    own = partial(_own_part, work, how, needed, token_axes())
    run = per_device(own, names, outputs)
    in_compute_dtype = head.astype(hidden.dtype)  # before it is gathered
    values, d_hidden, d_head = run(hidden, in_compute_dtype, counts, *arrays)
    return values, d_hidden, None if d_head is None else d_head.astype(head.dtype)


def _own_part(
    work: Work,
    how: How,
    needed: tuple[bool, bool],
    over: tuple[str, ...],
    hidden: Any,
    head: Any,
    counts: Any,
    *arrays: Any,
) -> tuple[Any, Any, Any]:
    """One device's rows and words."""
    rows, length, width = hidden.shape
    positions = rows * length
    turns, size = chunks(rows, length, how.chunk)
    order, some = some_first(counts.reshape(-1), turns * size)
    flat = hidden.reshape(-1, width), *(x.reshape(-1) for x in arrays)

    def turn(n: Any, made: Any) -> Any:
        values, d_hidden, d_head = made
        at = jax.lax.dynamic_slice_in_dim(order, n * size, size)
        at = jnp.where(n * size + jnp.arange(size) < some, at, at + positions)
        d_head, of_chunk, d_parts = work(at, flat, head, d_head, needed)
        for places, d_part in d_parts:
            d_hidden = _put(d_hidden, places, d_part)
        return _put(values, at, of_chunk), d_hidden, d_head

    start = (
        jnp.zeros(positions, jnp.float32),
        jnp.zeros_like(flat[0]) if needed[0] else None,
        jnp.zeros(head.shape, jnp.float32) if needed[1] else None,
    )
    used = (some + size - 1) // size
    with at_most(turns):
        values, d_hidden, d_head = jax.lax.fori_loop(0, used, turn, start)
    d_hidden = None if d_hidden is None else d_hidden.reshape(hidden.shape)
    if d_head is not None:
        d_head = reduced(d_head, over, "vocab", "embed", dtype=how.reduce)
    return values.reshape(rows, length), d_hidden, d_head


def _put(x: Any, places: Any, values: Any) -> Any:
    return x.at[places].set(values, mode="drop", unique_indices=True)


def read(x: Any, places: Any) -> Any:
    """The entries at these positions; 0 behind all of them."""
    return x.at[places].get(mode="fill", fill_value=0)


def scaled(gradient: Any, scale: Any) -> Any:
    """The gradient times a scalar, in its own dtype; None remains None."""
    return None if gradient is None else (gradient * scale).astype(gradient.dtype)


def chunks(rows: int, length: int, chunk: int) -> tuple[int, int]:
    """Chunks that all positions of a device take, and positions in each: equal ones.

    1,000 positions, at most 512: 2 x 500, not 512 + 488 + padding. Several are made where one would
    do, so that there is something to leave out.
    """
    positions = rows * length
    most = min(rows * chunk, max(SMALLEST, -(-positions // PARTS)))
    turns = -(-positions // most)
    return turns, -(-positions // turns)


def some_first(some: Any, size: int) -> tuple[Any, Any]:
    """Numbers of all positions [size], some of them first, and how many these are.

    Behind them come numbers that no position has.
    """
    positions = jnp.arange(len(some))
    count = jnp.cumsum(some)
    place = jnp.where(some, count - 1, count[-1] + positions - count)
    order = jnp.arange(size).at[place].set(positions, unique_indices=True)
    return order, count[-1]
