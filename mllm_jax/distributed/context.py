"""Divides the length of rows over the context axis: causal attention is equal work for its devices.

A row is cut into 2n equal chunks for n devices; device i holds number i and number 2n - 1 - i.
Queries of chunk c see c + 1 chunks of keys, so those of a device see 2n + 1 together:

    context 2    device 0: chunks 0 3    1: chunks 1 2
    context 4    device 0: chunks 0 7    1: chunks 1 6    2: chunks 2 5    3: chunks 3 4

Batches are in the order of their rows everywhere. A model reads them, and gives its hidden states,
in the devices' order: 0 3 1 2. Nothing but attention looks from one position to another, and it
is told the positions.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.common.arithmetic import scattered, take_rows
from mllm_jax.distributed.collectives import per_device
from mllm_jax.distributed.sharding import TABLE, constrain, parts_of

LENGTH = "length"  # the logical name of the dimension


def balanced(x: Any, *others: str) -> jax.Array:
    """An array [B, T, ...] in the devices' order, each with its part; as it is without the axis.

    Args:
        x: in the order of the row.
        others: logical names of the dimensions behind T.
    """
    parts = parts_of(LENGTH)
    if parts == 1:
        return jnp.asarray(x)
    return constrain(in_parts(jnp.asarray(x), parts), "batch", LENGTH, *others)


def restored(x: jax.Array) -> jax.Array:
    """The inverse of `balanced`."""
    parts = parts_of(LENGTH)
    return x if parts == 1 else in_a_row(x, parts)


def in_parts(x: jax.Array, parts: int) -> jax.Array:
    """[B, T, ...] from the order of the row to that of `parts` devices."""
    B, T, *rest = x.shape
    halves = x.reshape(B, 2, parts, T // (2 * parts), *rest)
    return jnp.stack([halves[:, 0], halves[:, 1, ::-1]], axis=2).reshape(x.shape)


def in_a_row(x: jax.Array, parts: int) -> jax.Array:
    """The inverse of `in_parts`."""
    B, T, *rest = x.shape
    pairs = x.reshape(B, parts, 2, T // (2 * parts), *rest)
    return jnp.concatenate([pairs[:, :, 0], pairs[:, ::-1, 1]], axis=1).reshape(x.shape)


def positions(part: jax.Array | int, parts: int, length: int) -> Int[Array, "T"]:
    """Where the positions of a device's part are in their row; ascending.

    Args:
        part: the device's number.
        parts: n.
        length: of its part of a row, T / n.
    """
    chunk = length // 2
    starts = jnp.stack([jnp.asarray(part), 2 * parts - 1 - jnp.asarray(part)]) * chunk
    return (starts[:, None] + jnp.arange(chunk)[None, :]).reshape(length).astype(jnp.int32)


def whole_rows(x: jax.Array, reduce: Any = jnp.float32) -> jax.Array:
    """Inside `per_device`: a device's part [B, T / n, ...] -> the whole row, in its order.

    The gradient is summed over the devices and divided among them.

    Args:
        x: its part.
        reduce: dtype in which gradients are summed.
    """
    return _whole_rows((parts_of(LENGTH), jnp.dtype(reduce), x.dtype), x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole_rows(how: tuple[int, Any, Any], x: jax.Array) -> jax.Array:
    return in_a_row(jax.lax.all_gather(x, TABLE[LENGTH], axis=1, tiled=True), how[0])


def _forward(how: Any, x: jax.Array) -> tuple[jax.Array, None]:
    return _whole_rows(how, x), None


def _backward(how: Any, _: None, dy: jax.Array) -> tuple[jax.Array]:
    parts, reduce, dtype = how
    dy = in_parts(dy.astype(reduce), parts)
    return (jax.lax.psum_scatter(dy, TABLE[LENGTH], scatter_dimension=1, tiled=True).astype(dtype),)


_whole_rows.defvjp(_forward, _backward)


def take_vectors(
    vectors: Float[Array, "B J D"], index: Int[Array, "B T"], reduce: Any = jnp.float32
) -> Float[Array, "B T D"]:
    """Row `index[b, t]` of `vectors[b]`, where devices share the slots and the length of a row.

    A row's vectors are gathered for the time of this; their gradient is summed over its parts.

    Args:
        vectors: of the image slots, laid out as ("batch", "slots", "none").
        index: each in 0..J-1, laid out as ("batch", "length").
        reduce: dtype in which the gradient is summed over devices.
    """
    return _take_vectors((vectors.shape[1], jnp.dtype(reduce), vectors.dtype), vectors, index)


VECTORS, INDEX, TAKEN = ("batch", "slots", "none"), ("batch", LENGTH), ("batch", LENGTH, "none")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_vectors(how: tuple[int, Any, Any], vectors: jax.Array, index: jax.Array) -> jax.Array:
    def run(vectors: jax.Array, index: jax.Array) -> jax.Array:
        whole = jax.lax.all_gather(vectors, TABLE["slots"], axis=1, tiled=True)
        return jax.vmap(partial(take_rows, dtype=how[2]))(whole, index)

    return per_device(run, (VECTORS, INDEX), TAKEN)(vectors, index)


def _take_forward(how: Any, vectors: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _take_vectors(how, vectors, index), index


def _take_backward(how: Any, index: jax.Array, dy: jax.Array) -> tuple[jax.Array, None]:
    count, reduce, dtype = how

    def run(dy: jax.Array, index: jax.Array) -> jax.Array:
        summed = jax.vmap(lambda dy, index: scattered(dy, index, count, jnp.float32))(dy, index)
        axes = TABLE["slots"]
        parts = jax.lax.psum_scatter(summed.astype(reduce), axes, scatter_dimension=1, tiled=True)
        return parts.astype(dtype)

    return per_device(run, (TAKEN, INDEX), VECTORS)(dy, index), None


_take_vectors.defvjp(_take_forward, _take_backward)
