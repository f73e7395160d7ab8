"""Maps every global position to a record: a pure function of (streams, passes, seed).

Random access, no state. Each stream is shuffled again every epoch and repeated without end; the
mixture takes from the streams by the counts of its passes, as evenly as possible:

    stream a (3 records, 2 of 3 positions)   a2 a1 a0 | a1 a2 a0 | a1 ...
    stream b (2 records, 1 of 3 positions)   b1 b0 | b1 b0 | ...
    mixture, positions 0 1 2 ...             a2 b1 a1 a0 b0 a1 a2 ...
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from mllm_jax.data.mixture.passes import Passes

# of the rule by which records get into rows and steps; a run is resumed under the version that it
# started with (1: rows of a window by their first positions, windows across passes)
VERSION = 2


class Ref(NamedTuple):
    """A record at a position of the mixture."""

    position: int
    stream: int
    record: int
    epoch: int  # how many times the stream was repeated before


class Refs(NamedTuple):
    """Many of them, as arrays."""

    stream: Int64[np.ndarray, "n"]
    record: Int64[np.ndarray, "n"]
    epoch: Int64[np.ndarray, "n"]


class Order:
    """position -> Ref, for every position from 0 on."""

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        passes: Passes,
        seed: int,
        start: Sequence[int] | Int64[np.ndarray, "s"] = (),
    ):
        """Begins every stream at its first record, or after `start` records.

        Args:
            names: of the streams; they give each a shuffle of its own.
            sizes: numbers of records, >= 1.
            passes: how many records of each stream a pass has.
            seed: of the shuffles.
            start: records of each stream that came before position 0, over all epochs.
        """
        self.seed = seed
        self._start = np.array(start if len(start) else [0] * len(names), np.int64)
        self._arguments = (list(names), list(map(int, sizes)), passes, seed, self._start.tolist())
        self._sizes, self._passes = np.asarray(sizes, np.int64), passes
        self._shuffles: list[Callable[[int], np.ndarray]] = [
            functools.lru_cache(maxsize=2)(functools.partial(shuffled, size, name, seed))
            for name, size in zip(names, map(int, sizes), strict=True)
        ]

    @property
    def identity(self) -> list[Any]:
        """What decides the order, as plain values."""
        names, sizes, passes, seed, start = self._arguments
        return [VERSION, names, sizes, list(map(str, passes.rates)), seed, start]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes its own shuffles."""
        return Order, self._arguments

    def __getitem__(self, position: int) -> Ref:
        stream, record, epoch = (int(x[0]) for x in self.take(np.array([position])))
        return Ref(position, stream, record, epoch)

    def take(self, positions: Int64[np.ndarray, "n"]) -> Refs:
        """The records at these positions."""
        stream, before = np.empty_like(positions), np.empty_like(positions)
        pending = np.ones(len(positions), bool)
        while pending.any():  # consecutive positions are in one or two blocks
            block = self._passes.block(int(positions[pending].min()))
            inside = pending & (positions < block.end)
            offset = positions[inside] - block.start
            stream[inside] = block.stream[offset]
            before[inside] = block.before[block.stream[offset]] + block.rank[offset]
            pending &= ~inside
        epoch, index = np.divmod(self._start[stream] + before, self._sizes[stream])
        record = np.empty_like(index)
        grouped = np.lexsort((epoch, stream))
        change = np.diff(stream[grouped]).astype(bool) | np.diff(epoch[grouped]).astype(bool)
        for group in np.split(grouped, np.flatnonzero(change) + 1) if len(positions) else ():
            s, e = int(stream[group[0]]), int(epoch[group[0]])
            record[group] = self._shuffles[s](e)[index[group]]
        return Refs(stream, record, epoch)

    def before(self, position: int) -> Int64[np.ndarray, "s"]:
        """Records of each stream before a position, those before position 0 included."""
        block = self._passes.block(position)
        begun = block.stream[: position - block.start]
        return self._start + block.before + np.bincount(begun, minlength=len(self._start))


def shuffled(size: int, name: str, seed: int, epoch: int) -> Int32[np.ndarray, "n"]:
    """The order of a stream's records in one epoch.

    Sorted raw Philox bits: numpy promises that these never change between versions, which it does
    not promise for `shuffle`.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(name.encode()), epoch])
    order = np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
    return order.astype(np.int32)
