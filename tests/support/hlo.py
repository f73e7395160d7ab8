"""What a compiled program must not hold, by its collectives and shapes.

A program is one device's: shapes are those of its shares, and device numbers are positions in the
mesh.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from mllm_jax.distributed import sharding
from mllm_jax.models.axes import logical_axes
from mllm_jax.preflight import hlo, program

Shape = tuple[int, ...]
KINDS = (*hlo.KINDS, "ragged-all-to-all", "collective-broadcast")
SMALL = 16  # elements of a metric at most: sums by stream or language, norms, counts


class Collective(NamedTuple):
    """One instruction that moves data between devices."""

    kind: str
    shapes: list[tuple[str, Shape]]  # (dtype, result shape on a device); dimensions of 1 left out
    axes: frozenset[str]  # the mesh axes it crosses
    where: str  # the operation of the source it comes from

    def says(self) -> str:
        """For messages."""
        shapes = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self.shapes)
        return f"{self.kind} {shapes} over {sorted(self.axes)}: {self.where or '?'}"


def shapes(text: str) -> list[tuple[str, Shape]]:
    """All array shapes in a piece of HLO text, dimensions of 1 left out."""
    return [(dtype, tuple(d for d in dims if d != 1)) for dtype, dims in program.arrays(text)]


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Every collective of a compiled program, in its order."""
    lines = [line for lines in program.parse(text)[0].values() for line in lines]
    return [
        Collective(kind, shapes(line.shape), _axes(line, mesh), program.op_name(line))
        for line in lines
        if (kind := line.opcode.removesuffix("-start")) in KINDS
    ]


def _axes(line: program.Instruction, mesh: Mesh) -> frozenset[str]:
    """Names of the axes along which the members of a collective's groups differ."""
    crossed = set()
    for group in program.device_groups(line) or [range(mesh.size)]:
        places = np.array(np.unravel_index(list(group), mesh.devices.shape))
        rows = zip(mesh.axis_names, places, strict=True)
        crossed |= {name for name, row in rows if len(set(row)) > 1}
    return frozenset(crossed)


# ------------------------------------------------------------------------------ what is not allowed


def assert_gathers_one_layer_at_most(
    text: str, mesh: Mesh, params: Any, of_rows: Sequence[Shape] = ()
) -> None:
    """All-gathers cross `fsdp` alone, and give one layer's slice or a parameter without layers.

    So no stacked parameter (all layers at once) is ever whole, no parameter is gathered over
    `tensor`, and no activation is gathered at all. Whole numbers (tokens) are free, those of
    matrices in int8 are not. With a context axis parameters cross it with `fsdp`.

    Args:
        text: the compiled program.
        mesh: its mesh.
        params: tree of arrays or shapes; what lies under "layers" is stacked on its first axis.
        of_rows: shapes of activations that may be gathered over `context`.
    """
    allowed = {_split(shape, names, mesh, {"tensor"}) for shape, names in _each(params, (True,))}
    shards = {axis for axis in sharding.TABLE["embed"] if mesh.shape[axis] > 1}
    rows = set(map(_bag, of_rows))

    def fits(made: Collective) -> bool:
        fine = rows if made.axes == {"context"} else set()
        fine = fine | (allowed if made.axes == shards else set())
        return all(_bag(shape) in fine for _, shape in made.shapes)

    wrong = [
        made.says()
        for made in collectives(text, mesh)
        if made.kind == "all-gather"
        and any(dtype[0] not in "su" or dtype == "s8" for dtype, _ in made.shapes)
        and not fits(made)
    ]
    assert not wrong, "gathered:\n" + "\n".join(wrong)


def assert_logits_are_shared(text: str, mesh: Mesh, rows: int, chunk: int, vocab: int) -> None:
    """No array over the vocabulary is larger than a device's share of a chunk's logits.

    Args:
        text: the compiled program.
        mesh: its mesh.
        rows: rows of a microbatch, over all devices.
        chunk: positions whose logits exist at the same time.
        vocab: V. It and its parts must be no other dimension's size, and a chunk's share must
            exceed a parameter over the vocabulary.
    """
    part = vocab // sharding.ways(mesh, "vocab")
    share = rows // sharding.ways(mesh, "batch") * chunk * part
    seen = [shape for _, shape in shapes(text) if {vocab, part} & set(shape)]
    largest = max(seen, key=math.prod)
    assert math.prod(largest) == share, f"{largest}, where a share of the logits has {share}"


def assert_only_gradients_cross(text: str, mesh: Mesh, axis: str, trained: Any) -> None:
    """Over `axis` nothing moves but sums: of a parameter's gradient or a layer's, and of metrics.

    Args:
        text: the compiled program.
        mesh: its mesh.
        axis: one that lies on slow links.
        trained: tree of the trained parameters, arrays or shapes.
    """
    shards = set(sharding.TABLE["embed"])
    allowed = {
        _split(shape, names, mesh, split)
        for shape, names in _each(trained, (True, False))
        for split in (set(), shards, {"tensor"}, {*shards, "tensor"})
    }
    wrong = [
        made.says()
        for made in collectives(text, mesh)
        if axis in made.axes
        and not (
            made.kind in ("all-reduce", "reduce-scatter")
            and all(_bag(shape) in allowed or math.prod(shape) <= SMALL for _, shape in made.shapes)
        )
    ]
    assert not wrong, f"crosses {axis}:\n" + "\n".join(wrong)


def assert_crosses_in_no_loop(text: str, mesh: Mesh, axis: str) -> None:
    """What moves over `axis` moves once a step, not once a microbatch or layer.

    Args:
        text: the compiled program.
        mesh: its mesh.
        axis: one that lies on slow links.
    """
    found = collectives(text, mesh)
    wrong = [made.says() for made in found if axis in made.axes and "while/body" in made.where]
    assert not wrong, f"crosses {axis} in a loop:\n" + "\n".join(wrong)


def _each(params: Any, one_layer: Sequence[bool]) -> Iterator[tuple[Shape, tuple[str, ...]]]:
    """(shape, logical names) of every parameter; of one layer of it, all layers, or both."""
    for path, names in logical_axes(params).items():
        shape = params[path].shape
        for one in one_layer if names and names[0] == "layers" else (False,):
            yield (shape[1:], names[1:]) if one else (shape, names)


def _split(shape: Shape, names: Sequence[str], mesh: Mesh, axes: set[str]) -> Shape:
    """The bag of a share when only these mesh axes divide the array."""
    ways = [math.prod(mesh.shape[a] for a in sharding.TABLE[n] if a in axes) for n in names]
    return _bag(s // w for s, w in zip(shape, ways, strict=True))


def _bag(shape: Iterable[int]) -> Shape:
    """Dimensions in no order: the compiler turns arrays as it likes. Those of 1 left out."""
    return tuple(sorted(size for size in shape if size != 1))
