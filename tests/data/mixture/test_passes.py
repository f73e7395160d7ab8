"""Passes: exact counts after every pass, evenly inside, from anywhere and at any size."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.data.mixture.passes import BLOCK, Passes

RATES = st.lists(st.fractions(0, 300, max_denominator=50), min_size=1, max_size=4).filter(
    lambda rates: sum(rates) >= 1
)


def streams(passes: Passes, start: int, stop: int) -> list[tuple[int, int]]:
    """(stream, how often it came before) at each position, one by one."""
    seen = []
    for position in range(start, stop):
        block = passes.block(position)
        assert block.start <= position < block.end
        stream = int(block.stream[position - block.start])
        seen.append((stream, int(block.before[stream] + block.rank[position - block.start])))
    return seen


@settings(max_examples=60, deadline=None)
@given(RATES, st.integers(0, 10**9))
def test_counts_are_exact_after_every_pass(rates, first):
    passes = Passes(rates)
    for number in (first, first + 1, first + 2):
        assert passes.counts(number) == [-(-rate.numerator * number // rate.denominator)
                                         for rate in passes.rates]  # fmt: skip
        start, end = passes.start(number), passes.start(number + 1)
        for position in {start, (start + end) // 2, end - 1} if end > start else ():
            assert passes.number(position) == number and passes.end(position) == end
    start, end = passes.start(first), passes.start(first + 2)
    seen = streams(passes, start, end)
    for stream, (a, b) in enumerate(
        zip(passes.counts(first), passes.counts(first + 2), strict=True)
    ):
        assert [rank for s, rank in seen if s == stream] == list(range(a, b)), "each once, in order"


@pytest.mark.parametrize(
    "sizes",
    [(1_000_000, 16), (3_000_000, 600_000), (100_000, 3000, 777), (BLOCK, 1), (1, 1, 1), (5,)],
)
def test_every_record_once_in_a_pass(sizes):
    passes, total = Passes(sizes), sum(sizes)
    counts, position = np.zeros(len(sizes), np.int64), 0
    while position < total:
        block = passes.block(position)
        assert block.before.tolist() == counts.tolist() and block.start == position
        counts += np.bincount(block.stream, minlength=len(sizes))
        position = block.end
    assert position == total and counts.tolist() == list(sizes)
    assert passes.block(total).before.tolist() == list(sizes)


def test_fractions_of_epochs_add_up_over_the_passes():
    passes = Passes([Fraction(5, 2) * 3, Fraction(1, 2) * 5])  # 2.5 x 3 records, 0.5 x 5
    assert [passes.counts(k) for k in range(5)] == [[0, 0], [8, 3], [15, 5], [23, 8], [30, 10]]
    seen = streams(passes, 0, passes.start(4))
    assert [sum(s == stream for s, _ in seen) for stream in (0, 1)] == [30, 10]


def test_parts_of_a_pass_are_rounded_up():
    passes = Passes([100])
    assert [passes.start(Fraction(x)) for x in ("0.001", "0.5", "0.505", "2.25")] == [
        1,
        50,
        51,
        225,
    ]


def test_streams_come_evenly():
    """After any number of positions each stream is within 2 of its share."""
    sizes = (200_000, 1000, 30)
    passes = Passes(sizes)
    stream = np.concatenate([passes.block(p).stream for p in _blocks(passes, sum(sizes))])
    for s, size in enumerate(sizes):
        share = np.arange(1, len(stream) + 1) * size / sum(sizes)
        assert abs(np.cumsum(stream == s) - share).max() <= 2


def _blocks(passes: Passes, end: int):
    position = 0
    while position < end:
        yield position
        position = passes.block(position).end


def test_a_block_by_hand():
    """The k-th of n stands at (k + 1/2) / n; of equal places the first stream comes first."""
    assert Passes([1, 2]).block(0).stream.tolist() == [1, 0, 1]
    assert Passes([1, 4]).block(0).stream.tolist() == [1, 1, 0, 1, 1]
    assert Passes([3, 1]).block(5).stream.tolist() == [0, 0, 1, 0]


def test_far_positions_cost_the_same():
    passes = Passes([Fraction(1, 3) * 10**7, 7])
    block = passes.block(10**15)
    assert block.start <= 10**15 < block.end < 10**15 + 3 * BLOCK
    assert passes.number(block.start) == 10**15 // (Fraction(10**7, 3) + 7)


def test_a_copy_is_the_same():
    passes = Passes([Fraction(5, 2), 7])
    passes.block(3)
    copy = pickle.loads(pickle.dumps(passes))
    assert copy.rates == passes.rates and streams(copy, 0, 40) == streams(passes, 0, 40)
