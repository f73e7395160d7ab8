"""Lazy leaves: parts of them, what is read for several parts, and lists of differences."""

from collections.abc import Callable

import numpy as np
import pytest

from mllm_jax.checkpoints.leaves import Index, Leaf, bounds, compare, drop_unread, read_parts
from mllm_jax.common.errors import ConfigError

ARRAY = np.arange(24).reshape(6, 4)


def counting() -> tuple[Leaf, list[Index]]:
    """A leaf of ARRAY, and the parts that were read of it."""
    read: list[Index] = []

    def part(index: Index) -> np.ndarray:
        read.append(index)
        return ARRAY[index]

    def never() -> np.ndarray:
        raise AssertionError("read as a whole")

    return Leaf(ARRAY.shape, ARRAY.dtype, never, part), read


def test_an_index_is_written_out():
    assert bounds([slice(None), slice(1, 9)], (6, 4)) == (slice(0, 6), slice(1, 4))
    assert bounds([slice(-2, None), slice(None, 3)], (6, 4)) == (slice(4, 6), slice(0, 3))


@pytest.mark.parametrize(
    "leaf", [lambda: counting()[0], lambda: Leaf(ARRAY.shape, ARRAY.dtype, lambda: ARRAY)]
)
def test_a_part_is_that_of_the_whole(leaf: Callable[[], Leaf]):
    assert np.array_equal(leaf().at([slice(2, 5), slice(None)]), ARRAY[2:5])
    assert leaf().size == 24


CASES = {  # row slices -> row slices that are read for them
    "neighbours are read as one": ([(0, 2), (2, 4), (4, 6)], [(0, 6)]),
    "equal ones are read once": ([(1, 3), (1, 3)], [(1, 3)]),
    "a gap is not read": ([(0, 2), (4, 6)], [(0, 2), (4, 6)]),
    "overlaps are read as they are": ([(0, 4), (2, 6)], [(0, 4), (2, 6)]),
    "in any order": ([(4, 6), (2, 4)], [(2, 6)]),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_read_once_and_nothing_else_is(case: str):
    rows, expected = CASES[case]
    leaf, read = counting()
    parts = read_parts(leaf, [(slice(*row), slice(1, 3)) for row in rows])
    for row, part in zip(rows, parts, strict=True):
        assert np.array_equal(part, ARRAY[slice(*row), 1:3])
    assert read == [(slice(*row), slice(1, 3)) for row in expected]


def test_a_checkpoint_of_another_model_is_refused():
    leaf, _ = counting()
    with pytest.raises(ConfigError) as error:
        compare("here", {"a": leaf, "b": leaf}, {"a": leaf}, "do that")
    assert str(error.value) == "here: checkpoint of another architecture: missing 1 (b); do that"
    compare("here", {"a": leaf}, {"a": leaf}, "do that")


def test_what_may_stay_unread_matches_as_a_whole():
    stored = ["connector/a", "connector/a/b", "vision/a"]
    assert drop_unread(stored, {"vision/a"}, None) == stored
    assert drop_unread(stored, {"vision/a"}, "connector/a") == ["connector/a/b", "vision/a"]
    assert drop_unread(stored, {"vision/a", "connector/a"}, ".*/a") == [
        "connector/a",
        "connector/a/b",
        "vision/a",
    ]
