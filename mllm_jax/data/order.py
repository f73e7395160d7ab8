"""Which record stands at which global position: a pure function of (streams, weights, seed).

Random access, no state. Each stream is shuffled anew every epoch and repeated without end; the
mixture takes from the streams in proportion:

    stream a (3 records, weight 2)   a2 a1 a0 | a1 a2 a0 | a1 ...
    stream b (2 records, weight 1)   b1 b0 | b1 b0 | ...
    mixture, positions 0 1 2 ...     a2 b1 a1 a0 b0 a1 a2 ...

The mixture repeats a pattern of PERIOD positions in which every stream stands as often as its
weight says and as evenly as that goes, so position p is in period p // PERIOD, and how often its
stream came before follows by multiplication.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from mllm_jax.errors import require

PERIOD = 2**16  # positions; no share is further from its target than 1 / PERIOD


class Ref(NamedTuple):
    """A record at a position of the mixture."""

    position: int
    stream: int
    record: int
    epoch: int  # how often the stream has been gone through before


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
        weights: Sequence[float],
        seed: int,
        start: Sequence[int] | Int64[np.ndarray, "s"] = (),
    ):
        """Begins every stream at its first record, or after `start` records.

        Args:
            names: of the streams; they give each a shuffle of its own.
            sizes: numbers of records, >= 1.
            weights: relative numbers of positions.
            seed: of the shuffles.
            start: records of each stream that came before position 0, over all epochs.

        Raises:
            ConfigError: a stream whose share is below half a position in a period.
        """
        self._start = np.array(start if len(start) else [0] * len(names), np.int64)
        self.weights = (np.asarray(weights, np.float64) / np.sum(weights)).tolist()
        fields = (list(names), list(map(int, sizes)), list(weights), seed)
        self.made_of = (*fields, self._start.tolist())  # plain values, JSON can hold them
        self._sizes = np.asarray(sizes, np.int64)
        self._counts = apportion(names, weights)
        self._pattern, self._rank = _pattern(self._counts)
        self._shuffles: list[Callable[[int], np.ndarray]] = [
            functools.lru_cache(maxsize=2)(functools.partial(shuffled, size, name, seed))
            for name, size in zip(names, map(int, sizes), strict=True)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes its own shuffles."""
        return Order, self.made_of

    def __getitem__(self, position: int) -> Ref:
        stream, record, epoch = (int(x[0]) for x in self.take(np.array([position])))
        return Ref(position, stream, record, epoch)

    def take(self, positions: Int64[np.ndarray, "n"]) -> Refs:
        """The records at these positions."""
        period, inside = np.divmod(positions, PERIOD)
        stream = self._pattern[inside]
        before = self._start[stream] + period * self._counts[stream] + self._rank[inside]
        epoch, index = np.divmod(before, self._sizes[stream])
        record = np.empty_like(index)
        for s, e in {*zip(stream.tolist(), epoch.tolist(), strict=True)}:
            here = (stream == s) & (epoch == e)
            record[here] = self._shuffles[s](e)[index[here]]
        return Refs(stream, record, epoch)

    def before(self, position: int) -> Int64[np.ndarray, "s"]:
        """Records of each stream before a position, those before position 0 included."""
        period, inside = divmod(position, PERIOD)
        begun = np.bincount(self._pattern[:inside], minlength=len(self._counts))
        return self._start + period * self._counts + begun


def apportion(names: Sequence[str], weights: Sequence[float]) -> Int64[np.ndarray, "s"]:
    """Positions of each stream in a period: largest remainders (Hamilton's method).

    Raises:
        ConfigError: see `Order`.
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    for name, share in zip(names, exact.tolist(), strict=True):
        require(
            share >= 0.5,
            f"data.streams.{name}.weight: its share {share / PERIOD:.1e} of the mixture is below "
            f"{0.5 / PERIOD:.1e}, and no record of it would come; raise it or remove the stream",
        )
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    rest = PERIOD - int(counts.sum())
    by_remainder = np.argsort(counts - exact, kind="stable")
    if rest >= 0:
        counts[by_remainder[:rest]] += 1
    else:  # streams that were raised to one position: the largest gives it
        counts[np.argmax(counts)] += rest
    return counts


def _pattern(
    counts: Int64[np.ndarray, "s"],
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]:
    """Stream at every position of a period, and how often it stood there before.

    The k-th of n positions of a stream wants to stand at (k + 1/2) / n of the period.
    """
    stream = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(n) for n in counts])
    place = np.argsort((rank + 0.5) / counts[stream], kind="stable")
    return stream[place], rank[place]


def shuffled(size: int, name: str, seed: int, epoch: int) -> Int32[np.ndarray, "n"]:
    """The order of a stream's records in one epoch.

    Sorted raw Philox bits: numpy promises that these never change between versions, which it does
    not promise for `shuffle`.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(name.encode()), epoch])
    order = np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
    return order.astype(np.int32)
