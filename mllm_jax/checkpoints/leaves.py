"""Parameters by path: lazy leaves, and the refusal of those of another model.

Everything in this folder streams: a `Leaf` knows its shape and number format, and reads its array
only when asked, so a conversion holds one parameter at a time.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.patterns import matches
from mllm_jax.common.trees import differences

Index = tuple[slice, ...]  # one slice with start and stop for every axis


@dataclass(frozen=True)
class Leaf:
    """One parameter that has not been read yet.

    `read` gives all of it; `part`, where there is one, reads what is at an index, and only that.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    part: Callable[[Index], np.ndarray] | None = None

    def at(self, index: Iterable[slice]) -> np.ndarray:
        """The part at an index of slices with step 1, as shardings give it (None: to the end)."""
        full = bounds(index, self.shape)
        return self.part(full) if self.part else self.read()[full]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def bounds(index: Iterable[slice], shape: tuple[int, ...]) -> Index:
    """An index with start and stop written out."""
    return tuple(slice(*cut.indices(n)[:2]) for cut, n in zip(index, shape, strict=True))


def size_of(index: Index) -> tuple[int, ...]:
    """The shape of what is at an index of `bounds`."""
    return tuple(cut.stop - cut.start for cut in index)


def read_parts(leaf: Leaf, indices: Iterable[Iterable[slice]]) -> list[np.ndarray]:
    """What is at each of these indices, in their order; equal ones share an array.

    Parts that fill a box together, as the shards of neighbouring devices do, are read as one.
    """
    chosen = [bounds(index, leaf.shape) for index in indices]
    parts = {str(part): part for part in chosen}  # slices have no hash before Python 3.12
    box = tuple(
        slice(min(cut.start for cut in axis), max(cut.stop for cut in axis))
        for axis in zip(*parts.values(), strict=True)
    )
    if math.prod(size_of(box)) == sum(math.prod(size_of(part)) for part in parts.values()):
        whole = leaf.at(box)
        read = {key: whole[_inside(box, part)] for key, part in parts.items()}
    else:
        read = {key: leaf.at(part) for key, part in parts.items()}
    return [read[str(part)] for part in chosen]


def place(leaf: Leaf, abstract: Any) -> jax.Array:
    """The parameter on its devices; this process reads and holds what its own devices need.

    Args:
        leaf: the parameter.
        abstract: a `jax.ShapeDtypeStruct`; values are cast to its dtype (round to nearest even),
            without a sharding they land on the first device.
    """
    home = abstract.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    indices = home.addressable_devices_indices_map(leaf.shape)
    whole = tuple(slice(None) for _ in leaf.shape)
    parts = read_parts(leaf, [index or whole for index in indices.values()])
    shards = [
        jax.device_put(part.astype(abstract.dtype, copy=False), device)
        for device, part in zip(indices, parts, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, home, shards)


def _inside(box: Index, part: Index) -> Index:
    """The part's index in what is at `box`."""
    pairs = zip(box, part, strict=True)
    return tuple(slice(b.start - a.start, b.stop - a.start) for a, b in pairs)


def compare(
    location: str, expected: Mapping[str, Any], stored: Mapping[str, Any], hint: str = ""
) -> None:
    """Refuses a checkpoint of another model: other names, or other shapes.

    Args:
        location: what was opened, for the message.
        expected: name -> anything with `.shape`, what the model needs.
        stored: name -> anything with `.shape`.
        hint: what to do, put at the end of the message.

    Raises:
        ConfigError: one line that lists missing, extra and misshapen names.
    """
    if parts := differences(expected, stored):
        message = "; ".join([*parts, *([hint] if hint else [])])
        raise ConfigError(f"{location}: checkpoint of another architecture: {message}")


def drop_unread(stored: Iterable[str], needed: Container[str], unread: str | None) -> list[str]:
    """The stored paths that must have a place.

    That is all but those that match the regex `unread` and are not needed.
    """
    return [
        p for p in stored if p in needed or unread is None or not matches(unread, p, "init.fresh")
    ]
