"""Symmetric KL divergence of predictions at two positions, summed, a chunk at a time.

    0.5 x (KL(p || q) + KL(q || p)) = 0.5 x sum over words of (p - q) (log p - log q)

p and q are the distributions over the vocabulary at a position and at its partner. As in `loss`,
the logits of one chunk (of both sides) exist at a time, and the loop that makes them also takes
their gradients to the hidden states and to the head:

    d / d logits of p = 0.5 x (p - q + p (log p - log q - KL(p || q)))      of q likewise

Both sides have gradients, as in R-Drop (Liang et al. 2021, arXiv:2106.14448), whose two inputs of
one target are a sentence twice, and CrossConST (Gao et al. 2023, arXiv:2305.07310), whose inputs
are in two languages.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from mllm_jax.common.arithmetic import einsum
from mllm_jax.common.loops import at_most
from mllm_jax.distributed.collectives import highest, per_device, reduced, summed, token_axes
from mllm_jax.training.loss import chunks, scaled, some_first


def symmetric_kl(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    partners: Int32[Array, "B T"],
    chunk: int,
    reduce: Any = jnp.float32,
) -> Float32[Array, ""]:
    """Sum over all positions that have a partner of the symmetric KL divergence, in nats.

    Args:
        hidden: the model's last hidden states, in compute dtype. The products run in this dtype and
            add up in float32; logits, softmax and divergence are float32.
        head: output vectors of the vocabulary as they are held.
        partners: position in the same row that each is compared with; -1 where there is none. No
            position has two partners.
        chunk: at most so many positions times rows have logits at the same time.
        reduce: dtype in which the head's gradient is summed over devices.
    """
    # two positions are compared: half of the chunk each
    return _divergence((max(chunk // 2, 1), jnp.dtype(reduce)), hidden, head, partners)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(how: tuple[int, Any], hidden: Any, head: Any, partners: Any) -> Any:
    return _loop(how, hidden, head, partners, (False, False))[0]


def _forward(how: tuple[int, Any], hidden: Any, head: Any, partners: Any) -> tuple[Any, Any]:
    # symbolic_zeros: JAX says of every argument whether it is differentiated ("perturbed")
    needed = (hidden.perturbed, head.perturbed)
    total, *gradients = _loop(how, hidden.value, head.value, partners.value, needed)
    return total, gradients


def _backward(how: tuple[int, Any], gradients: Any, cotangent: Any) -> tuple[Any, ...]:
    del how
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    return *(scaled(gradient, cotangent) for gradient in gradients), None


_divergence.defvjp(_forward, _backward, symbolic_zeros=True)


def _loop(
    how: tuple[int, Any], hidden: Any, head: Any, partners: Any, needed: tuple[bool, bool]
) -> Any:
    """-> sum, d hidden or None, d head or None; `needed`: which of the last two."""
    rows = ("batch", "length")
    names = (*rows, "none"), ("vocab", "none"), rows
    outputs = rows, names[0] if needed[0] else None, ("vocab", "embed") if needed[1] else None
    work = partial(_own_part, how=how, needed=needed, over=token_axes())
    run = per_device(work, names, outputs)
    each, d_hidden, d_head = run(hidden, head.astype(hidden.dtype), partners)
    return jnp.sum(each), d_hidden, None if d_head is None else d_head.astype(head.dtype)


def _own_part(
    hidden: Any,
    head: Any,
    partners: Any,
    how: tuple[int, Any],
    needed: tuple[bool, bool],
    over: tuple[str, ...],
) -> tuple[Any, Any, Any]:
    """One device's rows and words: -> divergences [B T], d hidden or None, d head or None."""
    chunk, reduce = how
    rows, length, width = hidden.shape
    turns, size = chunks(rows, length, chunk)
    order, paired = some_first(partners.reshape(-1) >= 0, turns * size)
    flat, starts = hidden.reshape(-1, width), jnp.arange(rows)[:, None] * length
    others = (partners + starts).reshape(-1)  # only read where there is a partner

    def turn(n: Any, made: Any) -> Any:
        each, d_hidden, d_head = made
        # numbers behind all positions that have a partner: nothing is read or written there
        first = jax.lax.dynamic_slice_in_dim(order, n * size, size)
        first = jnp.where(n * size + jnp.arange(size) < paired, first, rows * length)
        second = others.at[first].get(mode="fill", fill_value=rows * length)
        sides = [flat.at[at].get(mode="fill", fill_value=0) for at in (first, second)]
        d_head, divergences, d_sides = _chunk(d_head, sides, head, needed)
        each = each.at[first].set(divergences, mode="drop")
        if needed[0]:
            d_hidden = d_hidden.at[first].set(d_sides[0], mode="drop")
            d_hidden = d_hidden.at[second].set(d_sides[1], mode="drop")
        return each, d_hidden, d_head

    start = (
        jnp.zeros(rows * length, jnp.float32),
        jnp.zeros_like(flat) if needed[0] else None,
        jnp.zeros(head.shape, jnp.float32) if needed[1] else None,
    )
    with at_most(turns):
        used = (paired + size - 1) // size
        each, d_hidden, d_head = jax.lax.fori_loop(0, used, turn, start)
    d_hidden = None if d_hidden is None else d_hidden.reshape(hidden.shape)
    if d_head is not None:
        d_head = reduced(d_head, over, "vocab", "embed", dtype=reduce)
    return each.reshape(rows, length), d_hidden, d_head


def _chunk(d_head: Any, sides: list[Any], head: Any, needed: tuple[bool, bool]) -> Any:
    """n positions and their partners: -> d head with theirs added, divergences [n], d hidden x 2.

    Vectors of zeros, of positions that are not there, predict alike: they add nothing.
    """
    product = partial(einsum, out=jnp.float32)
    log_p, log_q = (_log_softmax(product("td,vd->tv", side, head)) for side in sides)
    p, q, ratio = jnp.exp(log_p), jnp.exp(log_q), log_p - log_q

    def over_words(x: Any) -> Any:
        return summed(jnp.sum(x, axis=-1, keepdims=True), "vocab")

    of_p, of_q = over_words(p * ratio), -over_words(q * ratio)  # KL(p || q), KL(q || p)
    d_sides: list[Any] = [None, None]
    if any(needed):
        d_p = 0.5 * (p - q + p * (ratio - of_p))
        d_q = 0.5 * (q - p - q * (ratio + of_q))
        d_logits = [d.astype(head.dtype) for d in (d_p, d_q)]
        if needed[0]:
            d_sides = [summed(product("tv,vd->td", d, head), "vocab") for d in d_logits]
            d_sides = [d.astype(head.dtype) for d in d_sides]
        if needed[1]:
            for d, side in zip(d_logits, sides, strict=True):
                d_head = d_head + product("tv,td->vd", d, side)
    return d_head, 0.5 * (of_p + of_q)[:, 0], d_sides


def _log_softmax(logits: Any) -> Any:
    peak = highest(jnp.max(logits, axis=-1, keepdims=True), "vocab")
    total = summed(jnp.sum(jnp.exp(logits - peak), axis=-1, keepdims=True), "vocab")
    return logits - peak - jnp.log(total)
