"""Weighted next-token cross-entropy, summed, a chunk at a time: hidden and head -> loss.

Logits are the largest array of a step: 8 rows x 4,096 positions x 128,256 words are 15.7 GiB in
float32. Here those of one chunk are alive at a time, and each exists once: the loop that makes them
also takes their gradient home (to the hidden states and to the head), so a step pays three products
with the head, not four, and keeps no logits for later.

    positions of weight 0 behind all others
    for each chunk that holds a position with weight:
        logits  = hidden @ head.T                          1st product
        loss   += sum(weight * (logsumexp - target))
        d       = weight * (softmax - onehot)
        d_hidden[chunk] = d @ head                         2nd product
        d_head += d.T @ hidden                             3rd, only if someone asks for it

What is not trained (questions, images, padding) costs no product. How much that is differs from
step to step: the loop's length is a number of the batch, its bound one of the program.
"""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from mllm_jax.common.arithmetic import einsum
from mllm_jax.common.loops import at_most
from mllm_jax.distributed.collectives import highest, part, per_device, reduced, summed, token_axes

# a chunk is an eighth of a device's positions or less, but no product of fewer than 512 rows
PARTS, SMALLEST = 8, 512


def weighted_loss(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int32[Array, "B T"],
    weights: Float32[Array, "B T"],
    chunk: int,
    reduce: Any = jnp.float32,
) -> tuple[Float32[Array, ""], Float32[Array, "B T"]]:
    """Sum over all positions of weight x negative log-likelihood of the target, in nats.

    Inputs and targets are aligned already: nothing is shifted here.

    Both results have gradients, by hidden states and head; weights are data. Which are wanted is
    seen while JAX differentiates: a head that is not differentiated (a frozen one) costs no product
    and no memory. The sum's gradient is made in its forward loop; that of the tokens' losses, which
    a loss over preferences needs, by a second loop in the backward pass.

    Args:
        hidden: the model's last hidden states, in compute dtype. The products run in this dtype and
            add up in float32; logits, softmax and loss are float32.
        head: output vectors of the vocabulary as they are held; cast to the dtype of `hidden`. The
            gradient is added up in float32 over the chunks and rounded to the head's dtype once.
        targets: the right next token of every position.
        weights: 0 where a target is not trained.
        chunk: at most so many positions times rows have logits at the same time.
        reduce: dtype in which the head's gradient is summed over devices.

    Returns:
        The sum, and the unweighted loss of every position; 0 where its weight is.

    Raises:
        TypeError: when differentiated by the weights.
    """
    both: Any = _loss((chunk, jnp.dtype(reduce)), hidden, head, targets, weights)
    return both


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(how: tuple[int, Any], hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
    loss, token_losses, _, _ = _loop(how, hidden, head, targets, weights, (False, False))
    return loss, token_losses


def _forward(
    how: tuple[int, Any], hidden: Any, head: Any, targets: Any, weights: Any
) -> tuple[Any, Any]:
    # symbolic_zeros: JAX says of every argument whether it is differentiated ("perturbed")
    if weights.perturbed:
        raise TypeError("weighted_loss has no gradient by its weights")
    needed = (hidden.perturbed, head.perturbed)
    values = (hidden.value, head.value, targets.value, weights.value)
    loss, token_losses, d_hidden, d_head = _loop(how, *values, needed)
    # what nobody asks for below is not kept: the compiler drops it
    return (loss, token_losses), ((d_hidden, d_head), values)


def _backward(how: tuple[int, Any], saved: Any, cotangents: Any) -> tuple[Any, ...]:
    gradients, (hidden, head, targets, weights) = saved
    of_sum, of_tokens = cotangents
    needed = gradients[0] is not None, gradients[1] is not None
    zero = jax.custom_derivatives.SymbolicZero
    parts = [] if isinstance(of_sum, zero) else [[scaled(d, of_sum) for d in gradients]]
    if not isinstance(of_tokens, zero):
        # the sum of losses x their cotangents, these being the weights; constants have none
        of_tokens = jnp.where(weights != 0, of_tokens, 0.0)
        parts.append(_loop(how, hidden, head, targets, of_tokens, needed)[2:])
    d_hidden, d_head = functools.reduce(lambda a, b: map(_added, a, b), parts, (None, None))
    return d_hidden, d_head, None, None


def scaled(gradient: Any, scale: Any) -> Any:
    """The gradient times a scalar, in its own dtype; None remains None."""
    return None if gradient is None else (gradient * scale).astype(gradient.dtype)


def _added(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _loop(
    how: tuple[int, Any],
    hidden: Any,
    head: Any,
    targets: Any,
    weights: Any,
    needed: tuple[bool, bool],
) -> Any:
    """-> loss, token losses, d hidden or None, d head or None; `needed`: which of the last two.

    Every device works on its own rows and its own part of the vocabulary. The head is gathered over
    fsdp once, before the loop, and its gradient summed over the devices once, after it.
    """
    rows = ("batch", "length")
    names = (*rows, "none"), ("vocab", "none"), rows, rows
    outputs = rows, names[0] if needed[0] else None, ("vocab", "embed") if needed[1] else None
    work = partial(_own_part, how=how, needed=needed, over=token_axes())
    run = per_device(work, names, outputs)
    in_compute_dtype = head.astype(hidden.dtype)  # before it is gathered
    token_losses, d_hidden, d_head = run(hidden, in_compute_dtype, targets, weights)
    d_head = None if d_head is None else d_head.astype(head.dtype)
    return jnp.sum(token_losses * weights), token_losses, d_hidden, d_head


def _own_part(
    hidden: Any,
    head: Any,
    targets: Any,
    weights: Any,
    how: tuple[int, Any],
    needed: tuple[bool, bool],
    over: tuple[str, ...],
) -> tuple[Any, Any, Any]:
    """One device's rows and tokens: -> token losses, d hidden or None, d head or None."""
    chunk, reduce = how
    rows, length, width = hidden.shape
    turns, size = chunks(rows, length, chunk)
    order, trained = some_first(weights.reshape(-1) != 0, turns * size)
    arrays = hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1)

    def turn(n: Any, made: Any) -> Any:
        losses, d_hidden, d_head = made
        at = jax.lax.dynamic_slice_in_dim(order, n * size, size)
        part_of_all = [x.at[at].get(mode="fill", fill_value=0) for x in arrays]
        d_head, (loss, d_part) = _chunk(d_head, part_of_all, head, needed)
        # behind the end of all positions nothing is written
        put = lambda x, y: x.at[at].set(y, mode="drop", unique_indices=True)  # noqa: E731
        return put(losses, loss), None if d_part is None else put(d_hidden, d_part), d_head

    start = (
        jnp.zeros(rows * length, jnp.float32),
        jnp.zeros_like(arrays[0]) if needed[0] else None,
        jnp.zeros(head.shape, jnp.float32) if needed[1] else None,
    )
    used = (trained + size - 1) // size
    with at_most(turns):
        losses, d_hidden, d_head = jax.lax.fori_loop(0, used, turn, start)
    losses = jnp.where(weights != 0, losses.reshape(rows, length), 0.0)
    d_hidden = None if d_hidden is None else d_hidden.reshape(hidden.shape)
    if d_head is not None:
        d_head = reduced(d_head, over, "vocab", "embed", dtype=reduce)
    return losses, d_hidden, d_head


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


def _chunk(
    d_head: Any, part_of_all: Sequence[Any], head: Any, needed: tuple[bool, bool]
) -> tuple[Any, Any]:
    """One chunk of n positions: -> d head with theirs added, (token losses [n], d hidden)."""
    flat, targets, weights = part_of_all
    product = partial(einsum, out=jnp.float32)
    logits = product("td,vd->tv", flat, head)
    # a comparison, not a gather: the target may be a token of another device
    ids = part("vocab") * head.shape[0] + jnp.arange(head.shape[0])
    is_target = ids[None, :] == targets.reshape(-1, 1)
    peak = highest(jnp.max(logits, axis=-1, keepdims=True), "vocab")
    total = summed(jnp.sum(jnp.exp(logits - peak), axis=-1, keepdims=True), "vocab")
    log_total = peak + jnp.log(total)
    target_logits = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1, keepdims=True)
    token_losses = log_total - summed(target_logits, "vocab")
    d_hidden = None
    if any(needed):
        softmax = jnp.exp(logits - log_total)
        d_logits = ((softmax - is_target) * weights.reshape(-1, 1)).astype(flat.dtype)
        if needed[0]:
            d_hidden = summed(product("tv,vd->td", d_logits, head), "vocab")
            d_hidden = d_hidden.astype(flat.dtype)
        if needed[1]:
            d_head = d_head + product("tv,td->vd", d_logits, flat)
    return d_head, (token_losses[:, 0], d_hidden)
