"""Finds all stored hashes within a few bits of each query, without comparing all pairs.

The 64 bits are four bands of 16. Where at most 7 bits differ, some band differs in at most one, so
17 look-ups a band find every near hash (multi-index hashing: Norouzi, Punjani and Fleet, 2012).
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt64

BANDS, BITS = 4, 16
FURTHEST = 2 * BANDS - 1  # differing bits up to which nothing is missed
_TOGETHER = 2**22  # comparisons at a time
_FLIPS = np.concatenate([[0], 1 << np.arange(BITS)]).astype(np.uint64)


class HashIndex:
    """Stored hashes, sorted by each of their bands."""

    def __init__(self, hashes: UInt64[np.ndarray, "n"]):
        """Takes the hashes; equal ones may be there several times."""
        self._values, inverse = np.unique(hashes, return_inverse=True)
        self._members = np.argsort(inverse, kind="stable")
        self._ends = np.cumsum(np.bincount(inverse, minlength=len(self._values)))
        self._orders, self._offsets = [], []
        for band in range(BANDS):
            keys = _band(self._values, band)
            self._orders.append(np.argsort(keys, kind="stable").astype(np.int32))
            counts = np.bincount(keys.astype(np.int64), minlength=2**BITS)
            self._offsets.append(np.concatenate([[0], np.cumsum(counts)]))

    def near(
        self, queries: UInt64[np.ndarray, "q"], distance: int
    ) -> Iterator[tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]]:
        """Pairs of (number of a query, number of a stored hash) at most `distance` bits apart.

        Args:
            queries: any number of them.
            distance: at most `FURTHEST`.

        Yields:
            Pairs in blocks. A pair may come again in a later block.
        """
        assert 0 <= distance <= FURTHEST, distance
        for band in range(BANDS):
            probes = (_band(queries, band)[:, None] ^ _FLIPS).astype(np.int64)
            starts = self._offsets[band][probes].ravel()
            counts = self._offsets[band][probes + 1].ravel() - starts
            for block in _blocks(counts):
                places = _expanded(starts[block], counts[block])
                asked = np.repeat(np.arange(block.start, block.stop), counts[block]) // len(_FLIPS)
                stored = self._orders[band][places]
                apart = np.bitwise_count(self._values[stored] ^ queries[asked])
                close = apart <= distance
                yield from self._pairs(asked[close], stored[close])

    def _pairs(
        self, asked: Int64[np.ndarray, "p"], stored: np.ndarray
    ) -> Iterator[tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]]:
        """Every member of the values that are near."""
        ends = self._ends[stored]
        counts = ends - np.where(stored > 0, self._ends[stored - 1], 0)
        starts = ends - counts
        for block in _blocks(counts):
            members = self._members[_expanded(starts[block], counts[block])]
            if len(members):
                yield np.repeat(asked[block], counts[block]), members


def _band(values: UInt64[np.ndarray, "n"], band: int) -> UInt64[np.ndarray, "n"]:
    return (values >> np.uint64(BITS * band)) & np.uint64(2**BITS - 1)


def _blocks(counts: Int64[np.ndarray, "n"]) -> Iterator[slice]:
    """Consecutive parts whose counts sum to about `_TOGETHER`."""
    sums, start = np.cumsum(counts), 0
    while start < len(counts):
        before = sums[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(sums, before + _TOGETHER, side="right")))
        yield slice(start, stop)
        start = stop


def _expanded(
    starts: Int64[np.ndarray, "n"], counts: Int64[np.ndarray, "n"]
) -> Int64[np.ndarray, "p"]:
    """start, start + 1, ... of every range, end to end."""
    total = int(counts.sum())
    shift = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return shift + np.arange(total)
