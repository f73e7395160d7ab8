"""Runs functions on each device's part of the arrays, with the sums and exchanges they need.

Dimensions have logical names, as everywhere; `sharding` maps them to mesh axes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mllm_jax.common.arithmetic import scattered, take_rows
from mllm_jax.distributed.sharding import TABLE, mesh_axes, parts_of, spec


def per_device(
    run: Callable[..., Any], inputs: Sequence[Sequence[str]], outputs: Any
) -> Callable[..., Any]:
    """`run` on each device's own part of the arrays. Without a mesh, `run` itself.

    For work that needs nothing of its neighbours (attention over whole rows), or that says itself
    what it needs, with `highest`, `summed`, `reduced` and `part`: these do nothing where there is
    no mesh.

    Args:
        run: is given parts of arrays. It is not differentiated through unless it is local.
        inputs: logical names of the arguments' dimensions.
        outputs: of the result's: a tuple of names, or a tree of such tuples like the result.
    """
    if _mesh().empty:
        return run
    complete = partial(spec, complete=True)
    out_specs = jax.tree.map(complete, outputs, is_leaf=_is_names)
    return jax.shard_map(
        run, in_specs=tuple(map(complete, inputs)), out_specs=out_specs, check_vma=False
    )


def highest(x: jax.Array, name: str) -> jax.Array:
    """Inside `per_device`: the maximum over the devices that hold parts of `name`."""
    return x if _mesh().empty else jax.lax.pmax(x, TABLE[name])


def summed(x: jax.Array, name: str) -> jax.Array:
    """Inside `per_device`: the sum over the devices that hold parts of `name`."""
    return x if _mesh().empty else jax.lax.psum(x, TABLE[name])


def part(name: str) -> jax.Array | int:
    """Inside `per_device`: the number of this device's part of `name`, from 0."""
    return 0 if _mesh().empty else jax.lax.axis_index(TABLE[name])


def token_axes() -> tuple[str, ...]:
    """The mesh axes that divide rows and their length, outermost first.

    Asked outside of `per_device`.
    """
    return mesh_axes("batch") + mesh_axes("length")


def reduced(
    gradient: jax.Array, over: Sequence[str], *names: str, dtype: Any = jnp.float32
) -> jax.Array:
    """Inside `per_device`: every device's tokens' share of a gradient -> this device's part of it.

    Summed over all tokens. What their axes divide is scattered while it is summed (reduce-scatter),
    and the other axes come last, the outermost at the end, so slow links carry the smallest part.

    Args:
        gradient: whole along the dimensions that the tokens' axes divide.
        over: `token_axes()`.
        *names: logical names of its dimensions; they say which part stays here.
        dtype: in which it is summed over devices.
    """
    if _mesh().empty:
        return gradient
    gradient = gradient.astype(dtype)
    divided: set[str] = set()
    for i, name in enumerate(names):
        axes = tuple(axis for axis in TABLE[name] if axis in over)
        if axes:  # together, so that parts are in the mesh's order
            gradient = jax.lax.psum_scatter(gradient, axes, scatter_dimension=i, tiled=True)
            divided.update(axes)
    for axis in reversed([axis for axis in over if axis not in divided]):
        gradient = jax.lax.psum(gradient, axis)
    # libtpu 0.0.42 fails on a reduce-scatter that a loop adds up without an operation in between
    # (while_loop_all_reduce_code_motion, RET_CHECK): microbatches on a mesh with data=1
    return jax.lax.optimization_barrier(gradient)


def summed_at_the_end(work: Callable[[Any, Any], Any], held: Any, rows: Any) -> Any:
    """`work(held, rows)` on every replica's rows by itself; their results are added up once.

    For work that adds up in a loop: inside, nothing crosses the data axis, which may be slow links.

    Args:
        work: gives a tree of sums over its rows, float32.
        held: a tree of arrays that all replicas have alike, such as the state.
        rows: a tree of arrays with the batch first.
    """
    replicas = TABLE["batch"][0]
    if _mesh().empty or _mesh().shape[replicas] == 1:
        return work(held, rows)
    run = jax.shard_map(
        lambda held, rows: jax.lax.psum(work(held, rows), replicas),
        in_specs=(P(), P(replicas)),
        out_specs=P(),
        axis_names={replicas},
        check_vma=False,
    )
    return run(held, rows)


def lookup(table: jax.Array, tokens: jax.Array, dtype: Any, reduce: Any = jnp.float32) -> jax.Array:
    """Rows of a table [V, D] laid out as ("vocab", "embed") for tokens [B, T]: [B, T, D].

    Under a mesh neither the table nor the other devices' rows are ever gathered: every device looks
    its columns up for all rows of its fsdp group, tokens of other devices giving zeros, and the
    group exchanges columns for rows. The gradient goes the same way back, adds up in float32 and is
    summed over `data` only. With a context axis the group is fsdp x context, and a row its parts.

        device    holds columns    looks up             after the exchange
          0          0..D/2        rows 0 1, 0..D/2     row 0, all columns
          1          D/2..D        rows 0 1, D/2..D     row 1, all columns

    Args:
        table: the parameter, in any dtype; its gradient is rounded to that once.
        tokens: each in 0..V-1.
        dtype: of the result; also travels between the devices.
        reduce: dtype in which the gradient is summed over `data`.
    """
    if _mesh().empty:
        return take_rows(table, tokens, dtype)
    entries = table.shape[0] // parts_of("vocab")
    return _lookup(_Table(entries, table.dtype, dtype, reduce), table, tokens)


class _Table(NamedTuple):
    """What a lookup and its gradient know of the table."""

    entries: int  # of the vocabulary, on each device
    dtype: Any
    compute: Any
    reduce: Any


TABLE_NAMES, TOKEN_NAMES = ("vocab", "embed"), ("batch", "length")
VECTOR_NAMES = (*TOKEN_NAMES, "none")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(about: _Table, table: jax.Array, tokens: jax.Array) -> jax.Array:
    columns = mesh_axes("embed")

    def run(table: jax.Array, tokens: jax.Array) -> jax.Array:
        index, here = _local_tokens(tokens, about.entries, columns)
        x = take_rows(table, index, about.compute)
        x = jnp.where(here[..., None], x, jnp.zeros((), about.compute))
        x = jax.lax.all_to_all(x, columns, split_axis=0, concat_axis=2, tiled=True)
        return summed(x, "vocab")  # of each vector only one addend is not zero

    return per_device(run, (TABLE_NAMES, TOKEN_NAMES), VECTOR_NAMES)(table, tokens)


def _lookup_forward(about: _Table, table: Any, tokens: Any) -> tuple[Any, Any]:
    return _lookup(about, table, tokens), tokens


def _lookup_backward(about: _Table, tokens: Any, dy: Any) -> tuple[Any, None]:
    columns = mesh_axes("embed")
    others = [axis for axis in token_axes() if axis not in columns]  # whose tokens are not here yet

    def run(dy: jax.Array, tokens: jax.Array) -> jax.Array:
        dy = jax.lax.all_to_all(dy, columns, split_axis=2, concat_axis=0, tiled=True)
        index, here = _local_tokens(tokens, about.entries, columns)
        dy = jnp.where(here[..., None], dy, jnp.zeros((), dy.dtype))
        d_table = scattered(dy, index, about.entries, jnp.float32)
        if others:
            d_table = jax.lax.psum(d_table.astype(about.reduce), others)
        return d_table.astype(about.dtype)

    return per_device(run, (VECTOR_NAMES, TOKEN_NAMES), TABLE_NAMES)(dy, tokens), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def _local_tokens(
    tokens: jax.Array, entries: int, columns: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """The fsdp group's tokens as rows of this device's part of the table, and which are in it."""
    tokens = jax.lax.all_gather(tokens, columns, tiled=True) - part("vocab") * entries
    here = (tokens >= 0) & (tokens < entries)
    return jnp.where(here, tokens, 0), here


def _mesh() -> Any:
    return jax.sharding.get_abstract_mesh()


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
