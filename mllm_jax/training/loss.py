"""Weighted next-token cross-entropy, summed, a chunk at a time: hidden and head -> loss.

Logits are the largest array of a step: 8 rows x 4,096 positions x 128,256 words are 15.7 GiB in
float32. Here those of one chunk are alive at a time, and each exists once: the loop that makes them
also takes their gradient home (to the hidden states and to the head), so a step pays three products
with the head, not four, and keeps no logits for later.

    for each chunk that holds a position with weight:
        logits  = hidden @ head.T                          1st product
        loss   += sum(weight * (logsumexp - target))
        d       = weight * (softmax - onehot)
        d_hidden[chunk] = d @ head                         2nd product
        d_head += d.T @ hidden                             3rd, only if someone asks for it
"""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from mllm_jax.common.arithmetic import einsum
from mllm_jax.distributed.collectives import highest, part, summed
from mllm_jax.training.chunks import How, in_chunks, read, scaled


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
    both: Any = _loss(How(chunk, jnp.dtype(reduce)), hidden, head, targets, weights)
    return both


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(how: How, hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
    loss, token_losses, _, _ = _loop(how, hidden, head, targets, weights, (False, False))
    return loss, token_losses


def _forward(how: How, hidden: Any, head: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
    # symbolic_zeros: JAX says of every argument whether it is differentiated ("perturbed")
    if weights.perturbed:
        raise TypeError("weighted_loss has no gradient by its weights")
    needed = (hidden.perturbed, head.perturbed)
    values = (hidden.value, head.value, targets.value, weights.value)
    loss, token_losses, d_hidden, d_head = _loop(how, *values, needed)
    # what nobody asks for below is not kept: the compiler drops it
    return (loss, token_losses), ((d_hidden, d_head), values)


def _backward(how: How, saved: Any, cotangents: Any) -> tuple[Any, ...]:
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


def _added(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _loop(
    how: How, hidden: Any, head: Any, targets: Any, weights: Any, needed: tuple[bool, bool]
) -> Any:
    """-> loss, token losses, d hidden or None, d head or None; `needed`: which of the last two."""
    token_losses, d_hidden, d_head = in_chunks(
        _chunk, how, needed, hidden, head, weights != 0, targets, weights
    )
    return jnp.sum(token_losses * weights), token_losses, d_hidden, d_head


def _chunk(at: Any, arrays: Any, head: Any, d_head: Any, needed: tuple[bool, bool]) -> Any:
    """One chunk of n positions, see `chunks.Work`: their losses."""
    flat, targets, weights = (read(x, at) for x in arrays)
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
    d_parts = []
    if any(needed):
        softmax = jnp.exp(logits - log_total)
        d_logits = ((softmax - is_target) * weights.reshape(-1, 1)).astype(flat.dtype)
        if needed[0]:
            d_hidden = summed(product("tv,vd->td", d_logits, head), "vocab")
            d_parts = [(at, d_hidden.astype(flat.dtype))]
        if needed[1]:
            d_head = d_head + product("tv,td->vd", d_logits, flat)
    return d_head, token_losses[:, 0], d_parts
