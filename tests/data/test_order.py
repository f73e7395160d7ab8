"""The order: every record once an epoch, shares as asked, nothing but (streams, weights, seed)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.data.order import PERIOD, Order, apportion, shuffled
from mllm_jax.errors import ConfigError

STREAMS = st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 10)), min_size=1, max_size=4).map(
    lambda pairs: tuple(zip(*pairs, strict=True))
)


def order(sizes, weights, seed=0) -> Order:
    return Order([f"s{n}" for n in range(len(sizes))], sizes, weights, seed)


@settings(max_examples=25, deadline=None)
@given(STREAMS, st.integers(0, 2**31))
def test_every_record_once_an_epoch_and_shares_as_asked(streams, seed):
    sizes, weights = streams
    positions = 400
    mixture = order(sizes, weights, seed)
    refs = [mixture[p] for p in range(positions)]
    assert [ref.position for ref in refs] == list(range(positions))
    for stream, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        own = [ref for ref in refs if ref.stream == stream]
        assert abs(len(own) - positions * weight / sum(weights)) <= len(sizes)
        for epoch in range(len(own) // size):
            part = own[epoch * size : (epoch + 1) * size]
            assert sorted(ref.record for ref in part) == list(range(size))
            assert {ref.epoch for ref in part} == {epoch}


def test_random_access_is_the_same_as_going_through():
    one, other = order((7, 50), (1.0, 3.0)), order((7, 50), (1.0, 3.0))
    straight = [one[p] for p in range(300)]
    mixed = np.random.default_rng(0).permutation(300).tolist()
    assert {p: other[p] for p in mixed} == dict(enumerate(straight))


def test_many_at_once_are_those_one_by_one():
    mixture = order((7, 50, 3), (1.0, 3.0, 0.2))
    positions = np.array([0, 5, PERIOD - 1, PERIOD, 7 * PERIOD + 13, 10**12])
    refs = mixture.take(positions)
    for n, position in enumerate(positions.tolist()):
        ref = mixture[position]
        assert (ref.stream, ref.record, ref.epoch) == tuple(int(field[n]) for field in refs)


def test_a_period_ends_and_the_epochs_go_on():
    mixture = order((PERIOD // 2 + 1, 10), (1.0, 1.0))
    refs = mixture.take(np.arange(2 * PERIOD + 4))
    first = refs.record[refs.stream == 0]
    assert sorted(first[: PERIOD // 2 + 1]) == list(range(PERIOD // 2 + 1))
    assert refs.epoch[refs.stream == 0][PERIOD // 2] == 0
    assert refs.epoch[refs.stream == 0][PERIOD // 2 + 1] == 1


def test_small_shares_come_and_smaller_ones_are_refused():
    counts = apportion(["a", "b", "c"], [1.0, 2e-5, 0.5])
    assert counts.sum() == PERIOD and counts[1] == 1
    with pytest.raises(ConfigError, match=r"data.streams.b.weight: its share 1.0e-07"):
        apportion(["a", "b"], [1.0, 1e-7])


def test_epochs_streams_and_seeds_have_orders_of_their_own():
    seen = {tuple(shuffled(50, n, s, e)) for n in ("a", "b") for s in (0, 1) for e in (0, 1)}
    assert len(seen) == 8


def test_shuffle_is_fair():
    """Each of 24 orders of 4 records about as often (chi-square, 23 degrees, p = 0.001: 49.7)."""
    counts = Counter(tuple(shuffled(4, "a", 0, epoch)) for epoch in range(4800))
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7


def test_frozen():
    """A run of today is resumed by a numpy of tomorrow: these orders must never change."""
    assert shuffled(8, "eu", 0, 0).tolist() == FROZEN[0]
    assert shuffled(8, "eu", 7, 3).tolist() == FROZEN[1]
    refs = order((3, 2), (2.0, 1.0))
    assert [(refs[p].stream, refs[p].record) for p in range(9)] == FROZEN[2]


FROZEN: list = [
    [5, 7, 0, 4, 1, 6, 3, 2],
    [1, 4, 5, 2, 3, 6, 7, 0],
    [(0, 0), (1, 1), (0, 1), (0, 2), (1, 0), (0, 1), (0, 0), (1, 1), (0, 2)],
]
