"""Which array dimension lies on which mesh axis: one table, and the few calls that use it.

Models name their dimensions with logical words; this file alone knows the mesh. Ground floor, no
flax.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.config import MeshConfig
from mllm_jax.errors import require
from mllm_jax.trees import flatten

AXES = ("data", "fsdp", "tensor")

# logical name -> mesh axes. A name that is missing here is an error, so a typing slip cannot
# replicate a parameter.
TABLE: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "none": (),
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh with axes data, fsdp, tensor.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = [config.data, config.fsdp, config.tensor]
    require(
        sizes.count(-1) <= 1,
        f"mesh: -1 stands at most once, got data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}",
    )
    require(
        all(s == -1 or s > 0 for s in sizes), f"mesh: sizes must be positive or -1, got {sizes}"
    )
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        require(
            len(devices) % known == 0,
            f"mesh: {len(devices)} devices do not divide by {known} (data, fsdp, tensor = {sizes})",
        )
        sizes[sizes.index(-1)] = len(devices) // known
    require(
        math.prod(sizes) == len(devices),
        f"mesh: data x fsdp x tensor = {math.prod(sizes)}, but there are {len(devices)} devices",
    )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(names: Sequence[str]) -> P:
    """Logical names of an array's dimensions -> PartitionSpec.

    ("layers", "embed", "mlp")  ->  P(None, "fsdp", "tensor")
    """
    parts, taken = [], set()
    for name in names:
        axes = TABLE[name]
        assert not taken & set(axes), (
            f"two dimensions of {tuple(names)} want mesh axis {taken & set(axes)}"
        )
        taken |= set(axes)
        parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return P(*parts)


def shardings(mesh: Mesh, axes: Any) -> Any:
    """A tree of logical-name tuples -> the same tree of NamedShardings."""
    return jax.tree.map(
        lambda names: NamedSharding(mesh, spec(names)), axes, is_leaf=lambda x: isinstance(x, tuple)
    )


def ways(mesh: Mesh, name: str) -> int:
    """Into how many parts the mesh divides a dimension of this logical name."""
    return math.prod(mesh.shape[axis] for axis in TABLE[name])


def check_divides(mesh: Mesh, axes: Any, shapes: Any) -> None:
    """Refuses a parameter whose dimension does not divide over its mesh axes.

    Raises:
        ConfigError: with the parameter's path and the numbers.
    """
    arrays = flatten(shapes)
    for path, names in flatten(axes).items():
        for name, size in zip(names, arrays[path].shape, strict=True):
            require(
                size % ways(mesh, name) == 0,
                f"mesh: {path} has {name}={size}, which does not divide over {ways(mesh, name)} "
                f"devices (mesh {dict(mesh.shape)})",
            )


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Asks the compiler to lay `x` out by these logical names.

    Does nothing without a mesh (single-device tests).
    """
    if _mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; every other dimension whole."""
    return NamedSharding(mesh, spec(("batch",)))


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
    out_specs = jax.tree.map(spec, outputs, is_leaf=_is_names)
    return jax.shard_map(
        run, in_specs=tuple(map(spec, inputs)), out_specs=out_specs, check_vma=False
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


def reduced(gradient: jax.Array, *names: str) -> jax.Array:
    """Inside `per_device`: every device's rows' share of a gradient -> this device's part of it.

    Summed over all rows. What a row axis divides is scattered while it is summed (reduce-scatter),
    and the outermost axis comes last, so slow links carry the smallest part.

    Args:
        gradient: whole along the dimensions that the row axes divide.
        *names: logical names of its dimensions; they say which part stays here.
    """
    if _mesh().empty:
        return gradient
    for axis in reversed(TABLE["batch"]):
        at = [i for i, name in enumerate(names) if axis in TABLE[name]]
        if at:
            gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=at[0], tiled=True)
        else:
            gradient = jax.lax.psum(gradient, axis)
    return gradient


def lookup(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table [V, D] laid out as ("vocab", "embed") for tokens [B, T]: [B, T, D].

    Under a mesh neither the table nor the other devices' rows are ever gathered: every device looks
    up its columns for all rows of its fsdp group, words that it does not hold giving zeros, and the
    group exchanges columns for rows. The gradient goes the same way back and is summed over `data`
    only.

        device    holds columns    looks up             after the exchange
          0          0..D/2        rows 0 1, 0..D/2     row 0, all columns
          1          D/2..D        rows 0 1, D/2..D     row 1, all columns

    Args:
        table: the parameter, in any dtype.
        tokens: each in 0..V-1.
        dtype: of the result; also travels between the devices.
    """
    if _mesh().empty:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    (columns,) = TABLE["embed"]

    def run(table: jax.Array, tokens: jax.Array) -> jax.Array:
        words = table.shape[0]
        tokens = jax.lax.all_gather(tokens, columns, tiled=True) - part("vocab") * words
        here = (tokens >= 0) & (tokens < words)
        x = jnp.take(table, jnp.where(here, tokens, 0), axis=0).astype(dtype)
        x = jnp.where(here[..., None], x, jnp.zeros((), dtype))
        x = jax.lax.all_to_all(x, columns, split_axis=0, concat_axis=2, tiled=True)
        return summed(x, "vocab")

    in_specs = (spec(("vocab", "embed")), spec(("batch", "length")))
    out_specs = spec(("batch", "length", "none"))
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs)(table, tokens)


def _mesh() -> Any:
    return jax.sharding.get_abstract_mesh()


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
