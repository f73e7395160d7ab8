"""Which array dimension lies on which mesh axis: one table, and the few calls that use it.

Models name their dimensions with logical words; this file alone knows the mesh. Ground floor, no
flax.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
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
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; every other dimension whole."""
    return NamedSharding(mesh, spec(("batch",)))


def per_device(
    run: Callable[..., jax.Array], inputs: Sequence[Sequence[str]], output: Sequence[str]
) -> Callable[..., jax.Array]:
    """`run` on each device's own part, for work that needs nothing of its neighbours.

    For example attention over whole rows. Without a mesh, `run` itself. `inputs` and `output` are
    logical names of the arrays' dimensions.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return run
    return jax.shard_map(
        run, in_specs=tuple(map(spec, inputs)), out_specs=spec(output), check_vma=False
    )
