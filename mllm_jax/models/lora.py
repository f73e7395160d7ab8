"""Adds low-rank updates to frozen matrices: y = x W + scale (x A) B, never W + scale A B.

DoRA multiplies that by m / |W + scale A B|, so that m alone says how long every output's weights
are. No merged matrix exists here either: the square of the length is

    |W|^2 + 2 <W, scale A B> + |scale A B|^2        of every output, over the inputs

where <W, A B> takes A'W [rank, outputs] and |A B|^2 takes A'A [rank, rank]: as much work as `rank`
more positions, and one reading of W.

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
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32

from mllm_jax.common.arithmetic import einsum
from mllm_jax.common.int8 import Int8Matrix, dense
from mllm_jax.config.adapter import (
    KERNEL,
    KERNEL_SCALE,
    MAGNITUDE,
    A,
    AdapterConfig,
    B,
    inputs_of,
    kernel_of,
    shapes,
    stacked,
)

KEYS, KEEP = "dropout_keys", "dropout_keep"  # beside A and B, in training with dropout
PARAMS = (A, B, MAGNITUDE, KEYS, KEEP)  # what a module looks for beside its matrix
SAVED = "product"  # name of what is kept for the backward pass, see `layers.REMAT`
GENERATOR = "threefry2x32"  # whatever JAX's default is: a resumed run draws what it drew
ODD = 0x9E3779B1  # 2^32 / golden ratio, the usual multiplier of hashes


def init(
    config: AdapterConfig, kernels: Mapping[str, Any], key: jax.Array
) -> dict[str, Float[Array, "..."]]:
    """First parameters of the adapters of a model, float32: random A, and B = 0.

    DoRA's magnitudes follow from the frozen matrices, which may be read from files: they are 1 here
    and set by `magnitudes`.

    Args:
        config: the section.
        kernels: {path: array or shape} of the parameters of the model.
        key: random key.
    """
    params = {}
    for kernel in config.targets(kernels):
        a, b, *magnitude = shapes(kernel, kernels[kernel].shape, config.rank, config.dora).items()
        own = jax.random.fold_in(key, zlib.crc32(a[0].encode()))
        params[a[0]] = _first_a(config, *a, own)
        params |= {b[0]: jnp.zeros(b[1])} | {path: jnp.ones(shape) for path, shape in magnitude}
    return params


def magnitudes(
    params: Mapping[str, Any], dtype: Any = jnp.float32
) -> dict[str, Float[Array, "..."]]:
    """First magnitudes of DoRA, float32: |W| of every output, with which nothing is changed.

    Args:
        params: path -> array; the adapters and their frozen matrices among them.
        dtype: in which matrices are used.

    Returns:
        {path: array} of the magnitudes, none without DoRA.
    """
    first = {}
    for path in (path for path in params if path.endswith(f"/{MAGNITUDE}")):
        kernel = kernel_of(path)
        layers = stacked(kernel)
        inputs = tuple(range(layers, layers + inputs_of(kernel)))
        matrix, scales = params[kernel], params.get(kernel.removesuffix(KERNEL) + KERNEL_SCALE)
        held = matrix if scales is None else Int8Matrix(matrix, scales)
        first[path] = jnp.sqrt(_squares(dense(held, dtype), inputs))
    return first


def _squares(x: Float[Array, "..."], inputs: tuple[int, ...]) -> Float[Array, "..."]:
    return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=inputs)


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


def adapted(
    equation: str,
    x: Float[Array, "..."],
    kernel: Float[Array, "..."] | Int8Matrix,
    adapter: Mapping[str, Any],
    linear: Any,
    name: str,
) -> Float[Array, "..."]:
    """The product of a frozen matrix with its adapter, x W + scale (x A) B, in x's dtype.

    Dropout is PEFT's: LoRA's update reads the inputs that are left, x', and DoRA's factor changes
    the product of these alone: x W + (factor - 1) x' W + factor scale (x' A) B.

    Args:
        equation: of the frozen product, "x's letters,kernel's letters->letters of the result".
        x: activations in the compute dtype.
        kernel: W.
        adapter: its parameters by their last name; the scale is in B already.
        linear: (equation, x, kernel) -> product, see `layers.linear`.
        name: of the module within its layer: others drop other inputs.
    """
    product = linear(equation, x, kernel)
    left = _dropped(x, adapter[KEYS], adapter[KEEP], name) if KEYS in adapter else x
    update = _update(equation, left, adapter, linear)
    if MAGNITUDE not in adapter:
        return checkpoint_name(product + update, SAVED)
    of_left = linear(equation, left, kernel) if KEYS in adapter else product
    changed = checkpoint_name(of_left + update, SAVED).astype(jnp.float32)
    factor = _factor(equation, dense(kernel, x.dtype), adapter)
    y = changed * factor.reshape((1,) * (changed.ndim - factor.ndim) + factor.shape)
    if KEYS in adapter:
        y = y + checkpoint_name(product - of_left, SAVED).astype(jnp.float32)
    return y.astype(product.dtype)


def _update(equation: str, x: Any, adapter: Mapping[str, Any], linear: Any) -> Any:
    """scale (x A) B."""
    letters, out, ins, outs = _letters(equation)
    rows = "".join(letter for letter in letters if letter not in ins)
    narrow = linear(f"{letters},{ins}R->{rows}R", x, adapter[A])
    return linear(f"{rows}R,R{outs}->{out}", narrow, adapter[B])


def _letters(equation: str) -> tuple[str, str, str, str]:
    """Those of x, of the result, and of the kernel's inputs and outputs."""
    inputs, out = equation.split("->")
    letters, kernel = inputs.split(",")
    ins = "".join(letter for letter in kernel if letter not in out)
    outs = "".join(letter for letter in kernel if letter in out)
    return letters, out, ins, outs


def _factor(
    equation: str, kernel: Float[Array, "..."], adapter: Mapping[str, Any]
) -> Float[Array, "..."]:
    """DoRA's m / |W + scale A B| of every output, float32; the length is a constant to gradients.

    A enters A'W in W's number format, as in the forward pass; all sums are float32. An output whose
    weights are all 0 has no direction: its factor is 0.

    Source: Liu et al. 2024, DoRA, sections 4.1 and 4.3; peft, tuners/lora/dora.py.
    """
    _, _, ins, outs = _letters(equation)
    kernel, a, b = (jax.lax.stop_gradient(x) for x in (kernel, adapter[A], adapter[B]))
    # one dimension of outputs: XLA on CPUs has no product of bfloat16 into float32 with two
    flat = kernel.reshape(*kernel.shape[: len(ins)], -1)
    of_kernel = einsum(f"{ins}R,{ins}O->RO", a.astype(flat.dtype), flat, out=jnp.float32)
    of_kernel = of_kernel.reshape(b.shape)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    of_update = einsum(f"RS,S{outs}->R{outs}", einsum(f"{ins}R,{ins}S->RS", a, a), b)
    squares = _squares(kernel, tuple(range(len(ins))))
    squares = squares + jnp.sum(b * (2 * of_kernel + of_update), axis=0)
    positive = squares > 0
    length = checkpoint_name(jnp.sqrt(jnp.where(positive, squares, 1.0)), SAVED)
    return jnp.where(positive, adapter[MAGNITUDE].astype(jnp.float32) / length, 0.0)


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
    flat = pixels.reshape(len(pixels), math.prod(pixels.shape[1:])).astype(jnp.uint32)
    places = jnp.arange(flat.shape[1], dtype=jnp.uint32)[None] * jnp.uint32(ODD)
    images = jnp.sum(_mixed(flat + places), axis=1, dtype=jnp.uint32)
    return _mixed(images[:, None] + jnp.arange(count, dtype=jnp.uint32)[None] * jnp.uint32(ODD))


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Spreads every bit over the whole number (MurmurHash3's finaliser, by Austin Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
