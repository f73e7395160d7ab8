"""Seats by hand, and the borders of answers."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from mllm_jax.data.spans import Run, check_ends, expand, expand_all, span_weights
from mllm_jax.errors import ConfigError


def test_expand():
    tokens, weights = np.array([5, 9, 6, 9, 7], np.int32), np.array([0, 1, 0, 0, 1], np.float32)
    wide = expand(tokens, weights, 9, 3)
    assert wide.tokens.tolist() == [5, 9, 9, 9, 6, 9, 9, 9, 7]
    assert wide.weights.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert wide.seats.tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, -1]


@pytest.mark.parametrize("patches", [1, 3])
def test_many_are_expanded_as_one_by_one(patches):
    rng = np.random.default_rng(0)
    records = [rng.integers(5, 10, size).astype(np.int32) for size in (1, 4, 1, 7, 2, 12)]
    weights = [rng.integers(0, 2, len(tokens)).astype(np.float32) for tokens in records]
    ends = np.cumsum([len(tokens) for tokens in records]).tolist()
    together = expand_all(np.concatenate(records), np.concatenate(weights), ends, 9, patches)
    for one, tokens, own in zip(together, records, weights, strict=True):
        alone = expand(tokens, own, 9, patches)
        assert [x.tolist() for x in one] == [x.tolist() for x in alone]
        assert [x.dtype for x in one] == [x.dtype for x in alone] == ["int32", "float32", "int32"]


class Encoding(NamedTuple):
    """The one thing of a tokenizer's answer that counts here."""

    offsets: list[Any]


def test_weights_of_a_span():
    run = Run("\n\nKatu bat", ((2, 10),))
    cut = Encoding([(0, 2), (2, 4), (4, 6), (6, 10)])
    assert span_weights(run, cut) == [0, 1, 1, 1]
    with pytest.raises(ConfigError, match="lies across the border of the answer 'Katu bat'"):
        span_weights(run, Encoding([(0, 3), (3, 10)]))


def test_parts_of_one_letter_are_all_trained():
    """A letter of several bytes may be several tokens with the same place."""
    run = Run("ab", ((1, 2),))
    assert span_weights(run, Encoding([(0, 1), (1, 2), (1, 2)])) == [0, 1, 1]


def test_what_follows_an_answer():
    done = Run("x", ((0, 1),))
    check_ends([7, done, 8, Run("y", ()), done, 8], 9)
    for items in ([done], [done, done], [done, 9], [Run("x ", ((0, 1),)), 8]):
        with pytest.raises(ConfigError, match="special token directly after every answer"):
            check_ends(list(items), 9)
