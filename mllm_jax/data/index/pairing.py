"""Pairs the records of a stream that mean the same in two languages: a pair is one unit of packing.

Two records with the same value in the field that `data.streams.*.pairs` names train in one row, as
neighbours; the mixture's order, its weights and epochs count units. All others are units of one:

    value of the field   a  b  a  -  c      (c alone, - has none)
    records              0  1  2  3  4
    units               (0, 2) (1) (3) (4)
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt64

NO_VALUE = 0  # what stands for the value of a record that has none
NOBODY = -1  # second member of a unit of one


@dataclass
class Pairing:
    """The units of a stream; what the mixture knows of a stream without pairs, it knows of this."""

    sizes: Int64[np.ndarray, "u"]  # tokens of all members
    tiles: Int64[np.ndarray, "u"]  # image slots of all members
    languages: tuple[str, ...]
    members: Int64[np.ndarray, "u 2"]  # numbers of the records; NOBODY where there is no second
    apart: int  # pairs that do not fit a row together, whose records are units of one

    def __len__(self) -> int:
        return len(self.sizes)

    def records(self, unit: int) -> tuple[int, ...]:
        """The records of a unit, in the stream's order."""
        return tuple(n for n in self.members[unit].tolist() if n != NOBODY)

    @property
    def is_pair(self) -> Bool[np.ndarray, "u"]:
        """Which units are of two."""
        return self.members[:, 1] != NOBODY

    @property
    def pairs(self) -> int:
        """How many."""
        return int(self.is_pair.sum())

    @property
    def counts(self) -> dict[str, int]:
        """Pairs, records without a partner, pairs that do not fit a row together."""
        alone = len(self) - self.pairs - 2 * self.apart
        return {"pairs": self.pairs, "alone": alone, "apart": self.apart}

    @property
    def described(self) -> str:
        """The counts for people."""
        counts, apart = self.counts, ""
        if self.apart:
            apart = f", {self.apart:,} pairs that do not fit a row together and train apart"
        return f"{counts['pairs']:,} pairs, {counts['alone']:,} records without a partner{apart}"

    @property
    def sides(self) -> Int64[np.ndarray, "n"]:
        """1 and 2 for the first and the second record of a pair, 0 for one alone, by record."""
        sides = np.zeros(int((self.members != NOBODY).sum()), np.int64)
        paired = self.members[self.is_pair]
        sides[paired[:, 0]], sides[paired[:, 1]] = 1, 2
        return sides


def partners(
    values: UInt64[np.ndarray, "n"],
) -> tuple[Int64[np.ndarray, "p 2"], Int64[np.ndarray, "k"]]:
    """Two records for every value that two share; and the third ones of values that more share.

    Args:
        values: of all records, in order; NO_VALUE where a record has none.
    """
    some = np.flatnonzero(values != NO_VALUE)
    order = some[np.argsort(values[some], kind="stable")]
    same = np.diff(values[order]) == 0
    pairs = np.stack([order[:-1][same], order[1:][same]], axis=1)
    return pairs[np.argsort(pairs[:, 0])], np.sort(order[2:][same[1:] & same[:-1]])


def pair_up(
    pairs: Int64[np.ndarray, "p 2"],
    sizes: Int64[np.ndarray, "n"],
    tiles: Int64[np.ndarray, "n"],
    together: Bool[np.ndarray, "p"],
    languages: tuple[str, ...],
) -> Pairing:
    """The units, in the order of their first records.

    Args:
        pairs: from `partners`.
        sizes, tiles: of all records.
        together: which of the pairs become units of two.
        languages: of the stream.
    """
    members = np.stack([np.arange(len(sizes)), np.full(len(sizes), NOBODY)], axis=1)
    first, second = pairs[together].T
    members[first, 1] = second
    members = np.delete(members, second, axis=0)
    more = members[:, 1] != NOBODY
    return Pairing(
        sizes[members[:, 0]] + np.where(more, sizes[members[:, 1]], 0),
        tiles[members[:, 0]] + np.where(more, tiles[members[:, 1]], 0),
        languages,
        members,
        int((~together).sum()),
    )
