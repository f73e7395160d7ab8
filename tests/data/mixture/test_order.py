"""The order: every record once an epoch, shares as asked, nothing but (streams, passes, seed)."""

import pickle
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.data.mixture.order import Order, shuffled
from mllm_jax.data.mixture.passes import BLOCK, Passes
from mllm_jax.data.mixture.weights import apportion

STREAMS = st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 10)), min_size=1, max_size=4).map(
    lambda pairs: tuple(zip(*pairs, strict=True))
)


def order(sizes, weights, seed=0) -> Order:
    names = [f"s{n}" for n in range(len(sizes))]
    return Order(names, sizes, Passes(apportion(names, weights).tolist()), seed)


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
    positions = np.array([0, 5, BLOCK - 1, BLOCK, 7 * BLOCK + 13, 10**12])
    refs = mixture.take(positions)
    for n, position in enumerate(positions.tolist()):
        ref = mixture[position]
        assert (ref.stream, ref.record, ref.epoch) == tuple(int(field[n]) for field in refs)


def test_a_period_ends_and_the_epochs_go_on():
    mixture = order((BLOCK // 2 + 1, 10), (1.0, 1.0))
    refs = mixture.take(np.arange(2 * BLOCK + 4))
    first = refs.record[refs.stream == 0]
    assert sorted(first[: BLOCK // 2 + 1]) == list(range(BLOCK // 2 + 1))
    assert refs.epoch[refs.stream == 0][BLOCK // 2] == 0
    assert refs.epoch[refs.stream == 0][BLOCK // 2 + 1] == 1


def test_it_begins_after_what_came_before():
    """A continuation with other shares: each stream goes on where it stopped."""
    first = order((7, 50), (1.0, 3.0))
    before = first.before(101)
    counts = np.bincount(first.take(np.arange(101)).stream)
    assert before.tolist() == counts.tolist()
    then = Order(["s0", "s1"], (7, 50), Passes([3, 1]), 0, before)
    assert then.before(0).tolist() == before.tolist()
    for stream, size in ((0, 7), (1, 50)):
        refs = [ref for ref in map(then.__getitem__, range(200)) if ref.stream == stream]
        nth = counts[stream] + np.arange(len(refs))
        assert [ref.epoch for ref in refs] == (nth // size).tolist()
        name = f"s{stream}"
        expected = [shuffled(size, name, 0, n // size)[n % size] for n in nth.tolist()]
        assert [ref.record for ref in refs] == expected


def test_a_copy_in_another_process_is_the_same_order():
    mixture = order((7, 50, 3), (1.0, 3.0, 0.2), seed=5)
    positions = np.arange(200, 300)
    for one, other in zip(
        mixture.take(positions), pickle.loads(pickle.dumps(mixture)).take(positions), strict=True
    ):
        np.testing.assert_array_equal(one, other)


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
