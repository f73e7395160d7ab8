"""Counts exactly how many records of each stream every pass of a mixture has, in whole numbers.

A pass takes `rate` records of a stream. Rates may be fractions; before pass k the stream has come
`ceil(k x rate)` times, so no rounding adds up over the passes:

    rates 2 and 1/2     pass    0      1      2      3
                        begins  0, 0   2, 1   4, 1   6, 2     records of each stream before it

A position in a pass is found through blocks of about BLOCK positions: block b of B begins after
`floor(count x b / B)` records of each stream. All of it is integers, any position costs the same.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

BLOCK = 2**16  # positions; inside a block every stream is spread as evenly as possible


class Block(NamedTuple):
    """Consecutive positions of one pass."""

    start: int
    end: int
    before: Int64[np.ndarray, "s"]  # records of each stream before the block
    stream: Int64[np.ndarray, "p"]  # at each of its positions
    rank: Int64[np.ndarray, "p"]  # how many times the stream occurred in the block before


class Passes:
    """position -> pass and block, for every position from 0 on."""

    def __init__(self, rates: Sequence[Fraction | int]):
        """`rates` are the records of each stream in a pass; at least 1 in all."""
        self.rates = tuple(map(Fraction, rates))
        self._total = sum(self.rates, Fraction(0))
        assert self._total >= 1, "a pass of less than one record"
        self._last: Block | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes its own blocks."""
        return Passes, (self.rates,)

    def counts(self, number: int | Fraction) -> list[int]:
        """Records of each stream before pass `number`."""
        return [-(-number * rate.numerator // rate.denominator) for rate in self.rates]

    def start(self, number: int | Fraction) -> int:
        """First position of a pass; of a fraction, the end of that part of the pass."""
        return sum(self.counts(number))

    def number(self, position: int) -> int:
        """The pass that holds a position."""
        number = int(position // self._total)  # no earlier pass begins later than its share
        while self.start(number) > position:
            number -= 1
        return number

    def end(self, position: int) -> int:
        """Where the pass ends that holds a position."""
        return self.start(self.number(position) + 1)

    def block(self, position: int) -> Block:
        """The block that holds a position; the last one is kept."""
        last = self._last
        if last is None or not last.start <= position < last.end:
            last = self._last = self._block(position)
        return last

    def _block(self, position: int) -> Block:
        number = self.number(position)
        first, after = self.counts(number), self.counts(number + 1)
        counts = [b - a for a, b in zip(first, after, strict=True)]
        length, offset = sum(counts), position - sum(first)
        blocks = max(1, length // BLOCK)

        def begun(block: int) -> list[int]:
            return [count * block // blocks for count in counts]

        # rounding down starts a block up to one position a stream before its share
        b = offset * blocks // length
        while sum(begun(b + 1)) <= offset:
            b += 1
        inside = tuple(y - x for x, y in zip(begun(b), begun(b + 1), strict=True))
        before = np.array([x + y for x, y in zip(first, begun(b), strict=True)], np.int64)
        start = int(before.sum())
        return Block(start, start + sum(inside), before, *_pattern(inside))


@functools.lru_cache(maxsize=8)
def _pattern(counts: tuple[int, ...]) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]:
    """Stream at every position of a block, and how many times it occurred there before.

    The target of the k-th of n positions of a stream is (k + 1/2) / n of the block.
    """
    each = np.array(counts, np.int64)
    stream = np.repeat(np.arange(len(each)), each)
    rank = np.concatenate([np.arange(n) for n in counts])
    place = np.argsort((rank + 0.5) / each[stream], kind="stable")
    return stream[place], rank[place]
