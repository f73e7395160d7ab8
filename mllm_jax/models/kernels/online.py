"""Adds up attention block by block of keys, with a softmax whose largest score is not known yet.

What was added up is corrected as the largest score grows: Milakov and Gimelshein, arXiv 1805.02867;
Dao, FlashAttention-2, arXiv 2307.08691.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mllm_jax.models.kernels import masks


class Sums(NamedTuple):
    """Of the keys so far, for queries of any dimensions."""

    top: Float[Array, "*queries 1"]  # the largest score
    total: Float[Array, "*queries 1"]  # of exp(score - top)
    out: Float[Array, "*queries H"]  # of exp(score - top) times the values


def start(shape: tuple[int, ...]) -> Sums:
    """Before the first key; `shape` is that of `Sums.out`."""
    zeros = jnp.zeros((*shape[:-1], 1), jnp.float32)
    return Sums(zeros + masks.MASKED, zeros, jnp.zeros(shape, jnp.float32))


def add(sums: Sums, scores: Float[Array, "*queries S"], weigh: Callable[[Array], Array]) -> Sums:
    """With a block of keys.

    Args:
        sums: without it.
        scores: masked, float32.
        weigh: weights [*queries S] -> their sum of the block's values [*queries H].
    """
    top = jnp.maximum(sums.top, jnp.max(scores, axis=-1, keepdims=True))
    weights, shrunk = jnp.exp(scores - top), jnp.exp(sums.top - top)
    total = shrunk * sums.total + jnp.sum(weights, axis=-1, keepdims=True)
    return Sums(top, total, shrunk * sums.out + weigh(weights))


def done(sums: Sums) -> tuple[Float[Array, "*queries H"], Float[Array, "*queries 1"]]:
    """After the last key: attention, and the log of the softmax's sum for the backward pass."""
    return sums.out / sums.total, sums.top + jnp.log(sums.total)
