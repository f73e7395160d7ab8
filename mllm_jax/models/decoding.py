"""Reads prompts into a key/value cache, then one token of every row at a time.

    prompts --prefill--> logits, cache        through the attention backend, as in training
    token, cache --decode--> logits, cache    every layer's cache is extended where it is

Prompts end together: padding is on the left, so the next token of every row takes the same slot.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.batch import ModelInputs
from mllm_jax.models import mllm
from mllm_jax.models.llama import Cache
from mllm_jax.models.mllm import MLLM, Params


def prefill(
    model: MLLM,
    params: Params,
    inputs: ModelInputs,
    slots: int,
    vectors: Float[Array, "B J D"] | None = None,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads left-padded prompts into a new cache of `slots` tokens.

    Args:
        model: the network.
        params: path -> array.
        inputs: the prompts.
        slots: S, of the prompts and of all tokens that will be read after them.
        vectors: see `mllm.embed`.

    Returns:
        The logits after the last token, and the cache.
    """
    x = mllm.embed(model, params, inputs, vectors)
    segments, positions = jnp.asarray(inputs.segments), jnp.asarray(inputs.positions)
    x, cache = mllm.apply(model, params, "language", x, segments, positions, slots, method="read")
    return mllm.logits(x, mllm.head(params))[:, 0], cache


class Decoder(NamedTuple):
    """Parameters as decoding reads them, once for all tokens.

    Slices of stacked parameters, or casts of them, would otherwise be made for every token.
    """

    layers: tuple[Any, ...]  # of each block, nested
    head: Float[Array, "V D"]


def decoder(model: MLLM, params: Params) -> Decoder:
    """Takes each layer's parameters by themselves, matrices in the compute dtype."""
    assert model.language is not None
    dtype = jnp.dtype(model.compute.compute)
    stacked = mllm.part_of(model, params, "language")["layers"]

    def taken(path: Any, x: jax.Array, n: int) -> jax.Array:
        is_matrix = path[-1].key == "kernel" and jnp.issubdtype(x.dtype, jnp.floating)
        return x[n].astype(dtype) if is_matrix else x[n]  # int8 stays as it is held

    def layer(n: int) -> Any:
        return jax.tree_util.tree_map_with_path(functools.partial(taken, n=n), stacked)

    layers = tuple(layer(n) for n in range(model.language.config.layers))
    return Decoder(layers, mllm.head(params).astype(dtype))


def decode(
    model: MLLM,
    params: Params,
    decoder: Decoder,
    token: Int[Array, "B"],
    position: Int[Array, "B"],
    cache: Cache,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one more token of every row; returns the logits after it and the cache with it."""
    embed = mllm.apply(model, params, "language", token[:, None], method="embed")
    x, cache = mllm.apply(
        model, params, "language", embed, position[:, None], decoder.layers, cache, method="step"
    )
    return mllm.logits(x, decoder.head)[:, 0], cache
