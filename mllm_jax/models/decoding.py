"""Reads prompts into a key/value cache, then one token of every row at a time.

    prompts --prefill--> logits, cache        through the attention backend, as in training
    token, cache --decode--> logits, cache    every layer's cache is extended where it is

Prompts end together: padding is on the left, so the next token of every row takes the same slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
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


LAYERS = "language/layers/"


def unstack(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Gives each language layer arrays of its own: "language/layers/3/attention/q/kernel".

    A program that reads one token after another would copy all layers out of stacked arrays at each
    call: products take whole arrays, on GPUs more so than on TPUs.

    Args:
        params: path -> array, stacked [L, ...]; emptied, so that one stacked array at a time is
            held twice.
    """
    unstacked: dict[str, jax.Array] = {}
    for path in list(params):
        array = params.pop(path)
        if not path.startswith(LAYERS):
            unstacked[path] = array
            continue
        for n, layer in enumerate(_slices(array)):
            unstacked[f"{LAYERS}{n}/{path.removeprefix(LAYERS)}"] = layer
    return unstacked


def _slices(array: jax.Array) -> list[jax.Array]:
    """An array for each index of the first dimension, laid out as the array is."""
    home: Any = array.sharding
    if isinstance(home, NamedSharding):
        home = NamedSharding(home.mesh, PartitionSpec(*home.spec[1:]))
    return jax.jit(list, out_shardings=home)(array)


class Decoder(NamedTuple):
    """Parameters as decoding reads them, once for all tokens."""

    layers: Any  # nested: of all blocks, stacked or apart
    head: Float[Array, "V D"]  # in the compute dtype


def decoder(model: MLLM, params: Params) -> Decoder:
    """Casts the output table; the layers are left as they are held."""
    layers = mllm.part_of(model, params, "language")["layers"]
    return Decoder(layers, mllm.head(params).astype(jnp.dtype(model.compute.compute)))


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
