"""Near hashes are those that comparing all pairs finds."""

import numpy as np
import pytest

from mllm_jax.corpus.hash_search import FURTHEST, HashIndex


def near(stored: np.ndarray, queries: np.ndarray, distance: int) -> set[tuple[int, int]]:
    blocks = HashIndex(stored).near(queries, distance)
    return {pair for a, b in blocks for pair in zip(a.tolist(), b.tolist(), strict=True)}


@pytest.mark.parametrize("distance", [0, 6, FURTHEST])
def test_all_near_hashes_are_found_and_no_others(distance: int):
    generator = np.random.default_rng(0)
    stored = generator.integers(0, 2**64, 20_000, dtype=np.uint64)
    stored[:200] &= np.uint64(0xFF)  # crowded: many near ones
    queries = stored[:700].copy()
    for _ in range(7):
        queries[300:] ^= np.uint64(1) << generator.integers(0, 64, 400).astype(np.uint64)
    expected = {
        (number, int(place))
        for number, query in enumerate(queries)
        for place in np.flatnonzero(np.bitwise_count(stored ^ query) <= distance)
    }
    assert near(stored, queries, distance) == expected
    assert len(expected) > 300


def test_equal_and_no_hashes():
    ones = np.full(5, 7, np.uint64)
    assert near(ones, ones[:2], 0) == {(q, s) for q in range(2) for s in range(5)}
    assert near(ones[:0], ones, 6) == set()
    assert near(ones, ones[:0], 6) == set()
