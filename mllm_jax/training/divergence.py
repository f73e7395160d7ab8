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
from mllm_jax.distributed.collectives import highest, summed
from mllm_jax.training.chunks import How, in_chunks, read, scaled


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
    return _divergence(How(max(chunk // 2, 1), jnp.dtype(reduce)), hidden, head, partners)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(how: How, hidden: Any, head: Any, partners: Any) -> Any:
    return _loop(how, hidden, head, partners, (False, False))[0]


def _forward(how: How, hidden: Any, head: Any, partners: Any) -> tuple[Any, Any]:
    # symbolic_zeros: JAX says of every argument whether it is differentiated ("perturbed")
    needed = (hidden.perturbed, head.perturbed)
    total, *gradients = _loop(how, hidden.value, head.value, partners.value, needed)
    return total, gradients


def _backward(how: How, gradients: Any, cotangent: Any) -> tuple[Any, ...]:
    del how
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    return *(scaled(gradient, cotangent) for gradient in gradients), None


_divergence.defvjp(_forward, _backward, symbolic_zeros=True)


def _loop(how: How, hidden: Any, head: Any, partners: Any, needed: tuple[bool, bool]) -> Any:
    """-> sum, d hidden or None, d head or None; `needed`: which of the last two."""
    ahead = partners - jnp.arange(partners.shape[1])[None, :]
    each, d_hidden, d_head = in_chunks(_chunk, how, needed, hidden, head, partners >= 0, ahead)
    return jnp.sum(each), d_hidden, d_head


def _chunk(at: Any, arrays: Any, head: Any, d_head: Any, needed: tuple[bool, bool]) -> Any:
    """n positions and their partners, see `chunks.Work`: their divergences.

    Vectors of zeros, of positions that are not there, predict alike: they add nothing.
    """
    flat, ahead = arrays
    places = at, at + read(ahead, at)
    sides = [read(flat, one) for one in places]
    product = partial(einsum, out=jnp.float32)
    log_p, log_q = (_log_softmax(product("td,vd->tv", side, head)) for side in sides)
    p, q, ratio = jnp.exp(log_p), jnp.exp(log_q), log_p - log_q

    def over_words(x: Any) -> Any:
        return summed(jnp.sum(x, axis=-1, keepdims=True), "vocab")

    of_p, of_q = over_words(p * ratio), -over_words(q * ratio)  # KL(p || q), KL(q || p)
    d_parts = []
    if any(needed):
        d_p = 0.5 * (p - q + p * (ratio - of_p))
        d_q = 0.5 * (q - p - q * (ratio + of_q))
        d_logits = [d.astype(head.dtype) for d in (d_p, d_q)]
        if needed[0]:
            d_sides = [summed(product("tv,vd->td", d, head), "vocab") for d in d_logits]
            d_sides = [d.astype(head.dtype) for d in d_sides]
            d_parts = list(zip(places, d_sides, strict=True))
        if needed[1]:
            for d, side in zip(d_logits, sides, strict=True):
                d_head = d_head + product("tv,td->vd", d, side)
    return d_head, 0.5 * (of_p + of_q)[:, 0], d_parts


def _log_softmax(logits: Any) -> Any:
    peak = highest(jnp.max(logits, axis=-1, keepdims=True), "vocab")
    total = summed(jnp.sum(jnp.exp(logits - peak), axis=-1, keepdims=True), "vocab")
    return logits - peak - jnp.log(total)
