"""Weighted next-token cross-entropy, summed, in chunks over the length: hidden and head -> loss.

Logits are the largest array of a step: 8 rows x 4,096 positions x 128,256 words are 15.7 GiB in
float32. Here those of one chunk are alive at a time, and each exists once: the loop that makes them
also takes their gradient home (to the hidden states and to the head), so a step pays three products
with the head, not four, and keeps no logits for later.

    for each chunk of positions:
        logits  = hidden @ head.T                          1st product
        loss   += sum(weight * (logsumexp - target))
        d       = weight * (softmax - onehot)
        d_hidden[chunk] = d @ head                         2nd product
        d_head += d.T @ hidden                             3rd, only if someone asks for it
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from mllm_jax.common.arithmetic import einsum
from mllm_jax.distributed.collectives import highest, part, per_device, reduced, row_axes, summed


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

    Both results have gradients, by hidden states, head and weights. Which are wanted is seen while
    JAX differentiates: a head that is not differentiated (a frozen one) costs no product and no
    memory. The sum's gradient is made in its forward loop; that of the tokens' losses, which a loss
    over preferences needs, by a second loop in the backward pass.

    Args:
        hidden: the model's last hidden states, in compute dtype. The products run in this dtype and
            add up in float32; logits, softmax and loss are float32.
        head: output vectors of the vocabulary as they are held; cast to the dtype of `hidden`. The
            gradient is added up in float32 over the chunks and rounded to the head's dtype once.
        targets: the right next token of every position.
        weights: 0 where a target is not trained.
        chunk: at most so many positions of every row have logits at the same time. The length is
            divided into equal chunks, the last one padded if it must be.
        reduce: dtype in which the head's gradient is summed over devices.

    Returns:
        The sum, and the unweighted loss of every position.
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
    needed = (hidden.perturbed, head.perturbed)
    values = (hidden.value, head.value, targets.value, weights.value)
    loss, token_losses, d_hidden, d_head = _loop(how, *values, needed)
    d_weights = token_losses if weights.perturbed else None
    # what nobody asks for below is not kept: the compiler drops it
    return (loss, token_losses), ((d_hidden, d_head, d_weights), values[:3])


def _backward(how: tuple[int, Any], saved: Any, cotangents: Any) -> tuple[Any, ...]:
    (d_hidden, d_head, d_weights), (hidden, head, targets) = saved
    of_sum, of_tokens = cotangents
    zero = jax.custom_derivatives.SymbolicZero
    gradients = [None, None, None]
    if not isinstance(of_sum, zero):
        gradients = [_scaled(d, of_sum) for d in (d_hidden, d_head, d_weights)]
    if not isinstance(of_tokens, zero):
        # the sum of losses x their cotangents, these being the weights
        needed = (d_hidden is not None, d_head is not None)
        more = _loop(how, hidden, head, targets, of_tokens, needed)[2:]
        gradients[:2] = [_added(*pair) for pair in zip(gradients[:2], more, strict=True)]
    return gradients[0], gradients[1], None, gradients[2]


def _scaled(gradient: Any, scale: Any) -> Any:
    return None if gradient is None else (gradient * scale).astype(gradient.dtype)


def _added(one: Any, other: Any) -> Any:
    return other if one is None else one + other


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
    work = partial(_own_part, how=how, needed=needed, over=row_axes())
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
    rows, length, _ = hidden.shape
    count = -(-length // chunk)
    # equal chunks: 1,000 positions with chunk 512 are 2 x 500, not 512 + 488 + padding
    size = -(-length // count)
    body = partial(_chunk, head=head, needed=needed)
    start = jnp.zeros(head.shape, jnp.float32) if needed[1] else None
    parts = tuple(_cut(x, count, size) for x in (hidden, targets, weights))
    if count == 1:
        d_head, outs = body(start, tuple(x[0] for x in parts))
        outs = jax.tree.map(lambda x: x[None], outs)
    else:
        d_head, outs = jax.lax.scan(body, start, parts)
    token_losses, d_hidden = jax.tree.map(lambda x: _join(x, rows, length), outs)
    if d_head is not None:
        d_head = reduced(d_head, over, "vocab", "embed", dtype=reduce)
    return token_losses, d_hidden, d_head


def _chunk(
    d_head: Any, part_of_rows: tuple[Any, Any, Any], head: Any, needed: tuple[bool, bool]
) -> tuple[Any, Any]:
    """One chunk [B, c], made one axis of B x c: plain 2-D products are the fastest everywhere."""
    hidden, targets, weights = part_of_rows
    flat = hidden.reshape(-1, hidden.shape[-1])
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
            d_hidden = d_hidden.astype(hidden.dtype).reshape(hidden.shape)
        if needed[1]:
            d_head = d_head + product("tv,td->vd", d_logits, flat)
    return d_head, (token_losses.reshape(targets.shape), d_hidden)


def _cut(x: Any, count: int, size: int) -> Any:
    """[B, T, ...] -> [count, B, size, ...], zeros behind the end: weight 0, no effect."""
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, count * size - x.shape[1])
    x = jnp.pad(x, pad) if pad[1][1] else x
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)


def _join(x: Any, rows: int, length: int) -> Any:
    """[count, B, size, ...] -> [B, T, ...]: the way back from `_cut`."""
    return jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :length]
