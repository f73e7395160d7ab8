"""Which record stands at which global position: a pure function of (streams, weights, seed).

Random access, no state. Each stream is shuffled anew every epoch and repeated without end; the
mixture takes from the streams in proportion:

    stream a (3 records, weight 2)   a2 a1 a0 | a1 a2 a0 | a1 ...
    stream b (2 records, weight 1)   b1 b0 | b1 b0 | ...
    mixture, positions 0 1 2 ...     a2 a1 b1 a0 a1 b0 a2 a0 b1 ...

Grain interleaves and repeats. The permutations are ours: grain's shuffle walks through up to 65,536
numbers to place one of a handful of records (5 ms a position for 7 records).
"""

import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int64


class Ref(NamedTuple):
    """A record at a position of the mixture."""

    position: int
    stream: int
    record: int
    epoch: int  # how often the stream has been gone through before


class Order:
    """position -> Ref, for every position from 0 on."""

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], weights: Sequence[float], seed: int
    ):
        """`names` give each stream a shuffle of its own; `sizes` are numbers of records, >= 1."""
        streams = [
            _stream(number, name, size, seed)
            for number, (name, size) in enumerate(zip(names, sizes, strict=True))
        ]
        total = sum(weights)
        self._mixture = grain.MapDataset.mix(streams, [weight / total for weight in weights])

    def __getitem__(self, position: int) -> Ref:
        found = self._mixture[position]
        assert found is not None, "grain's mixtures skip no positions"
        stream, record, epoch = found
        return Ref(position, stream, record, epoch)


def _stream(number: int, name: str, size: int, seed: int) -> grain.MapDataset:
    permutation = functools.lru_cache(maxsize=2)(functools.partial(shuffled, size, name, seed))

    def place(position: int, _: int) -> tuple[int, int, int]:
        epoch, index = divmod(position, size)
        return number, int(permutation(epoch)[index]), epoch

    return grain.MapDataset.range(size).repeat().map_with_index(place)


def shuffled(size: int, name: str, seed: int, epoch: int) -> Int64[np.ndarray, "n"]:
    """The order of a stream's records in one epoch.

    Sorted raw Philox bits: numpy promises that these never change between versions, which it does
    not promise for `shuffle`.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(name.encode()), epoch])
    return np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
