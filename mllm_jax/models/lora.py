"""Adds low-rank updates to frozen matrices: y = x W + scale (x A) B, never W + scale A B.

The two narrow products cost (inputs + outputs) x rank where a gradient of W, or a merged copy of
it, would cost inputs x outputs. An adapter is found by its parameters, which stand beside the
matrix; the modules of the network do not know of it.

Dropout needs numbers that are the same however the rows lie on devices and in microbatches. Every
position is given a key made of the seed, the step, the layer and what was read up to there:

    tokens      <bos> Zer da | <bos> Kaixo        sums of hashes of (token, position), begun again
    keys         k1   k2  k3    k1    k4          with every segment

The keys reach the layers as one more parameter beside A and B, which no checkpoint ever sees.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32

from mllm_jax.config.adapter import A, AdapterConfig, B, shapes, stacked

KEYS, KEEP = "dropout_keys", "dropout_keep"  # beside A and B, in training with dropout
PARAMS = (A, B, KEYS, KEEP)  # what a module looks for beside its matrix
GENERATOR = "threefry2x32"  # whatever JAX's default is: a resumed run draws what it drew
ODD = 0x9E3779B1  # 2^32 / golden ratio, the usual multiplier of hashes


def init(
    config: AdapterConfig, kernels: Mapping[str, Any], key: jax.Array
) -> dict[str, Float[Array, "..."]]:
    """First parameters of the adapters of a model, float32: random A, and B = 0.

    Args:
        config: the section.
        kernels: {path: array or shape} of the parameters of the model.
        key: random key.
    """
    params = {}
    for kernel in config.targets(kernels):
        for path, shape in shapes(kernel, kernels[kernel].shape, config.rank).items():
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            params[path] = (
                jnp.zeros(shape) if path.endswith(B) else _first_a(config, path, shape, own)
            )
    return params


def _first_a(config: AdapterConfig, path: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """As PEFT's: kaiming_uniform with a = sqrt(5), or normal with deviation 1 / rank.

    Source: peft, tuners/lora/layer.py, reset_lora_parameters.
    """
    if config.init == "normal":
        return jax.random.normal(key, shape) / config.rank
    inputs = math.prod(shape[stacked(path) : -1])
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


# ------------------------------------------------------------------------------------------- update


def scaled(config: AdapterConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the adapters' scale in B."""
    return {
        path: x.astype(jnp.float32) * config.scale if path.endswith(f"/{B}") else x
        for path, x in params.items()
    }


def update(
    equation: str, x: Float[Array, "..."], adapter: Mapping[str, Any], linear: Any, name: str
) -> Float[Array, "..."]:
    """scale (x A) B in x's dtype; the scale is in B already.

    Args:
        equation: of the frozen product, "x's letters,kernel's letters->letters of the result".
        x: activations in the compute dtype.
        adapter: its parameters by their last name.
        linear: (equation, x, kernel) -> product, see `layers.linear`.
        name: of the module within its layer: others drop other inputs.
    """
    if KEYS in adapter:
        x = _dropped(x, adapter[KEYS], adapter[KEEP], name)
    inputs, out = equation.split("->")
    letters, kernel = inputs.split(",")
    ins = "".join(letter for letter in kernel if letter not in out)
    outs = "".join(letter for letter in kernel if letter in out)
    rows = "".join(letter for letter in letters if letter not in ins)
    narrow = linear(f"{letters},{ins}R->{rows}R", x, adapter[A])
    return linear(f"{rows}R,R{outs}->{out}", narrow, adapter[B])


def _dropped(
    x: Float[Array, "B T *rest"],
    keys: UInt32[Array, "B positions"],
    keep: Float[Array, ""],
    name: str,
) -> Float[Array, "B T *rest"]:
    """x with a share of its numbers set to 0 and the others raised by as much."""
    own = _mixed(keys[:, : x.shape[1]] ^ jnp.uint32(zlib.crc32(name.encode())))
    places = jnp.arange(math.prod(x.shape[2:]), dtype=jnp.uint32) * jnp.uint32(ODD)
    bits = _mixed(own[:, :, None] + places[None, None]).reshape(x.shape)
    stays = (bits >> 8).astype(jnp.float32) * 2.0**-24 < keep
    return jnp.where(stays, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


# ------------------------------------------------------------------------------------------ dropout


def with_dropout(
    config: AdapterConfig,
    params: Mapping[str, Any],
    identities: Mapping[str, UInt32[Array, "B T"]],
    key: Key[Array, ""],
) -> dict[str, Any]:
    """The parameters of a model, with what dropout needs beside its adapters.

    Args:
        config: the section.
        params: path -> array.
        identities: module (first part of a path) -> of every position that it reads.
        key: of the update.
    """
    extra = {}
    for path in (path for path in params if path.endswith(f"/{A}")):
        layers = params[path].shape[: stacked(path)]
        of_layers = jax.random.bits(key, (math.prod(layers),), jnp.uint32)
        of_positions = identities[path.partition("/")[0]]
        keys = of_layers[:, None, None] ^ of_positions[None]
        beside = path.removesuffix(A)
        extra[beside + KEYS] = keys.reshape(*layers, *keys.shape[1:])
        extra[beside + KEEP] = jnp.full(layers, 1 - config.dropout, jnp.float32)
    return {**params, **extra}


def text_identities(
    tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
) -> UInt32[Array, "B T"]:
    """A number for every position that depends on the tokens of its segment up to there alone."""
    own = _mixed(tokens.astype(jnp.uint32) * jnp.uint32(ODD) + positions.astype(jnp.uint32))
    sums = jnp.cumsum(own, axis=1, dtype=jnp.uint32)
    starts = jnp.maximum(jnp.arange(tokens.shape[1])[None] - positions, 0)
    return sums - jnp.take_along_axis(sums - own, starts, axis=1)


def image_identities(
    pixels: UInt8[Array, "B height width C"], count: int
) -> UInt32[Array, "B count"]:
    """A number for each of `count` positions of every image that depends on its pixels alone."""
    flat = pixels.reshape(len(pixels), -1).astype(jnp.uint32)
    places = jnp.arange(flat.shape[1], dtype=jnp.uint32)[None] * jnp.uint32(ODD)
    images = jnp.sum(_mixed(flat + places), axis=1, dtype=jnp.uint32)
    return _mixed(images[:, None] + jnp.arange(count, dtype=jnp.uint32)[None] * jnp.uint32(ODD))


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Spreads every bit over the whole number (MurmurHash3's finaliser, by Austin Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
