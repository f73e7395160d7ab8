"""Reads prompts into a key/value cache, then one token of every row at a time.

    prompts --prefill--> logits, cache        through the attention backend, as in training
    token, cache --decode--> logits, cache    every layer's cache is extended where it is

Prompts end together: padding is on the left, so the next token of every row takes the same slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.batch import ModelInputs
from mllm_jax.distributed.sharding import constrain
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
    assert model.language is not None
    x = mllm.embed(model, params, inputs, vectors)
    segments, positions = jnp.asarray(inputs.segments), jnp.asarray(inputs.positions)
    x, (keys, values) = mllm.apply(model, params, "language", x, segments, positions, keep=True)
    T, layers = x.shape[1], range(model.language.config.layers)
    cache = Cache(
        tuple(_padded(keys[n].transpose(0, 2, 3, 1), slots - T, 3) for n in layers),
        tuple(_padded(values[n].transpose(0, 2, 1, 3), slots - T, 2) for n in layers),
        T - jnp.sum(segments > 0, axis=1, dtype=jnp.int32),
        jnp.int32(T),
    )
    return mllm.logits(x[:, -1:], mllm.head(params))[:, 0], cache


def _padded(x: Float[Array, "B K _ _"], slots: int, axis: int) -> Float[Array, "B K _ _"]:
    """Room for more tokens behind those that are there."""
    x = jnp.pad(x, [(0, slots if n == axis else 0) for n in range(4)])
    return constrain(x, "batch", "kv_heads", "none", "none")


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

    def layer(n: int) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x[n].astype(dtype) if path[-1].key == "kernel" else x[n], stacked
        )

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
