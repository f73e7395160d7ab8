"""Maps array dimensions to mesh axes: one table, and the few functions that use it.

Models name their dimensions with logical words; this file alone knows the mesh.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.common.errors import require

AXES = ("data", "fsdp", "tensor", "context")

# logical name -> mesh axes. Unknown names raise an error, so a typo cannot silently replicate a
# parameter.
TABLE: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "slots": ("context",),  # image slots of a row
    "images": ("data", "fsdp", "context"),  # the slots of all rows
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "none": (),
}


def make_mesh(axes: Sequence[int] = (-1,), devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh with the axes AXES, laid over the hardware by `arrange`.

    Args:
        axes: how many devices each axis spans, those left out at the end one; -1 at most once: all
            that remain.
        devices: all of JAX's when None.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = [*axes, *[1] * (len(AXES) - len(axes))]
    listed = " ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
    require(sizes.count(-1) <= 1, f"mesh: -1 is allowed at most once, got {listed}")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        require(
            len(devices) % known == 0,
            f"mesh: {len(devices)} devices do not divide by {known} ({listed})",
        )
        sizes[sizes.index(-1)] = len(devices) // known
    require(
        math.prod(sizes) == len(devices),
        f"mesh: {' x '.join(AXES)} = {math.prod(sizes)}, but there are {len(devices)} devices",
    )
    return Mesh(arrange(devices, *sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(
    devices: Sequence[Any], data: int, fsdp: int, tensor: int, context: int = 1
) -> np.ndarray:
    """Devices as an array [data, fsdp, tensor, context] whose outer axis takes the slow links.

    A slice is what fast links join: a TPU slice, or the GPUs of a node (`device.slice_index`; where
    devices have none, or all the same, they are one slice). Slices follow one after another, each
    arranged by itself along its own links, so neighbours in fsdp, context and tensor share a slice:

        2 slices of 4, data=2 fsdp=2 tensor=2     slice 0: data 0,  slice 1: data 1
        2 slices of 4, data=4 fsdp=2 tensor=1     slice 0: data 0 1,  slice 1: data 2 3
        2 slices of 4, data=1 fsdp=4 tensor=2     slice 0: fsdp 0 1,  slice 1: fsdp 2 3

    The last one is allowed, since a large model on GPU nodes often needs it, although every layer's
    parameters cross the slow links then; `slow_links` says so. A tensor axis that leaves its slice
    is refused: it would send every layer's activations that way, and fsdp is never worse. So is a
    context axis, which sends every layer's keys and values.

    Raises:
        ConfigError: slices of different sizes, or a tensor or context axis that does not fit into
            one.
    """
    slices: dict[Any, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None), []).append(device)
    sizes = {number: len(members) for number, members in slices.items()}
    each = len(devices) // len(slices)
    require(
        set(sizes.values()) == {each},
        f"mesh: the slices hold different numbers of devices: {sizes}; give slices of one size",
    )
    shared = tensor * context
    axes = f"tensor={tensor}" if context == 1 else f"tensor={tensor} x context={context}"
    require(
        each % shared == 0,
        f"mesh: {axes} does not divide the {each} devices of a slice ({len(slices)} slices); give "
        f"a divisor of {each}, and more fsdp instead",
    )
    outer = (each // (fsdp * shared), fsdp) if each % (fsdp * shared) == 0 else (1, each // shared)
    # the last axis gets the nearest neighbours: tensor sends the most
    arranged = [
        create_device_mesh(
            (*outer, context, tensor), slices[number], allow_split_physical_axes=True
        )
        for number in sorted(slices, key=lambda number: number or 0)
    ]
    return np.stack(arranged).reshape(data, fsdp, context, tensor).swapaxes(2, 3)


def slow_links(mesh: Mesh) -> str | None:
    """One line on a mesh whose fsdp axis leaves its slice, see `arrange`; None if none does."""
    groups = [{getattr(d, "slice_index", None) for d in group.flat} for group in mesh.devices]
    if all(len(numbers) == 1 for numbers in groups):
        return None
    slices = len(set().union(*groups))
    context = mesh.shape["context"]
    return (
        f"mesh: fsdp={mesh.shape['fsdp']} x tensor={mesh.shape['tensor']} "
        f"{f'x context={context} ' if context > 1 else ''}is more than the "
        f"{mesh.size // slices} devices of a slice, so parameters cross the slow links in every "
        f"layer; data={slices} or a multiple would keep them inside"
    )


def shares_here(mesh: Mesh, process: int | None = None) -> list[int]:
    """Which of the batch's `ways(mesh, "batch")` equal shares of rows a process's devices hold.

    Processes that split one tensor or context group hold the same share: each must load it.

        4 processes of 2 devices    data=8               0: [0, 1]   1: [2, 3]   2: [4, 5]   ...
                                    fsdp=4 tensor=2      0: [0]      1: [1]      2: [2]      ...
                                    fsdp=2 tensor=4      0: [0]      1: [0]      2: [1]      ...

    Args:
        mesh: its order decides; a TPU's shares need not be neighbours.
        process: this one when None.
    """
    process = jax.process_index() if process is None else process
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"] * mesh.shape["context"])
    return [i for i, row in enumerate(rows) if any(d.process_index == process for d in row)]


def rows_here(mesh: Mesh, rows: int, process: int | None = None) -> list[int]:
    """The numbers of the rows of a batch that a process must load, ascending; see `shares_here`."""
    size = rows // ways(mesh, "batch")
    return [share * size + i for share in shares_here(mesh, process) for i in range(size)]


def mesh_axes(name: str, mesh: Mesh | AbstractMesh | None = None) -> tuple[str, ...]:
    """The mesh axes that divide a dimension of this logical name, outermost first.

    Inside `collectives.summed_at_the_end`, where every replica works by itself, `data` is left out;
    so is `context` where it is one device, as it nearly always is.

    Args:
        name: a key of TABLE.
        mesh: the current one when None.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    sizes = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
    one = {"context"} if sizes.get("context", 1) == 1 else set()
    return tuple(axis for axis in TABLE[name] if axis not in one.union(manual))


def spec(
    names: Sequence[str], mesh: Mesh | AbstractMesh | None = None, *, complete: bool = False
) -> P:
    """Logical names of an array's dimensions -> PartitionSpec, see `mesh_axes`.

    ("layers", "embed", "mlp")  ->  P(None, "fsdp", "tensor")

    Args:
        names: keys of TABLE.
        mesh: the current one when None.
        complete: with a context axis of one device too. `jax.shard_map` needs that: it sums
            gradients over every axis that is not named, in the program even over one device.

    Raises:
        ConfigError: two dimensions want the same mesh axis.
    """
    parts, taken = [], set()
    manual = jax.sharding.get_abstract_mesh().manual_axes
    for name in names:
        axes = mesh_axes(name, mesh)
        if complete:
            axes = tuple(axis for axis in TABLE[name] if axis not in manual)
        both = ", ".join(sorted(taken & set(axes)))
        require(
            not both,
            f"sharding: {name!r} of {tuple(names)} is on mesh axis {both}, which another of its "
            "dimensions has already; give one of them another axis",
        )
        taken |= set(axes)
        parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return P(*parts)


def shardings(mesh: Mesh, axes: Any) -> Any:
    """A tree of logical-name tuples -> the same tree of NamedShardings."""
    placed = lambda names: NamedSharding(mesh, spec(names, mesh))  # noqa: E731
    return jax.tree.map(placed, axes, is_leaf=lambda x: isinstance(x, tuple))


def ways(mesh: Mesh | AbstractMesh, name: str) -> int:
    """Into how many parts the mesh divides a dimension of this logical name."""
    return math.prod(mesh.shape[axis] for axis in TABLE[name])


def check_divides(mesh: Mesh, axes: Mapping[str, Sequence[str]], shapes: Mapping[str, Any]) -> None:
    """Refuses a parameter whose dimension does not divide over its mesh axes.

    Raises:
        ConfigError: with the parameter's path and the numbers.
    """
    for path, names in axes.items():
        for name, size in zip(names, shapes[path].shape, strict=True):
            require(
                size % ways(mesh, name) == 0,
                f"mesh: {path} has {name}={size}, which does not divide over {ways(mesh, name)} "
                f"devices (mesh {dict(mesh.shape)}); give {' x '.join(mesh_axes(name, mesh))} a "
                "size that divides it",
            )


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Asks the compiler to lay `x` out by these logical names.

    Does nothing without a mesh (single-device tests).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names))


def parts_of(name: str) -> int:
    """Into how many parts the current mesh divides a dimension of this logical name."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else ways(mesh, name)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; every other dimension whole."""
    return NamedSharding(mesh, spec(("batch",), mesh))
