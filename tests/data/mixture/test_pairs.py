"""Where the two records of a pair are in a row, by hand."""

import numpy as np
import pytest

from mllm_jax.batch import TEXT, Example
from mllm_jax.data.mixture.packing import assemble, stack
from mllm_jax.data.mixture.pairs import locate, most_pairs


def example(tokens: str, trained: str, side: int = 0) -> Example:
    """A letter a token; `trained` has a 1 for each that is."""
    return Example(
        np.array([ord(c) for c in tokens], np.int32),
        np.array([float(c) for c in trained], np.float32),
        np.full(len(tokens), TEXT, np.int32),
        (),
        0,
        0,
        "s/r",
        side,
    )


def test_the_drawn_example():
    """See the top of the module."""
    one, other = example("Bqqab", "00011", 1), example("BQab", "0011", 2)
    partners, spans = locate([one, other], 10, 2)
    assert partners.tolist() == [-1, -1, 6, 7, -1, -1, -1, -1, -1, -1]
    assert spans.tolist() == [[[1, 3], [6, 7]], [[0, 0], [0, 0]]]


def test_targets_at_partners_are_the_same_tokens():
    """Behind another example and before one; two pairs, in two turns."""
    row = [
        example("xxy", "001"),
        example("Bqabrrc", "0011001", 1),
        example("BQQabRc", "0001101", 2),
        example("xy", "01"),
        example("Bqc", "001", 1),
        example("BqQQc", "00001", 2),
    ]
    partners, spans = locate(row, 30, 3)
    laid = assemble(row, [], 30, 0, 0, 1)
    firsts = np.flatnonzero(partners >= 0)
    assert firsts.tolist() == [4, 5, 8, 20]
    assert partners[firsts].tolist() == [12, 13, 15, 25]
    np.testing.assert_array_equal(laid.targets[firsts], laid.targets[partners[firsts]])
    assert (laid.weights[firsts] == 1).all() and (laid.weights[partners[firsts]] == 1).all()
    assert (laid.segments[firsts] + 1 == laid.segments[partners[firsts]]).all()
    # the last pair's questions begin alike: "q" is in neither span, and the shorter one is "q"
    assert spans.tolist() == [[[4, 5], [11, 13]], [[20, 21], [24, 26]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("tokens", "trained"), [("BQac", "0011"), ("BQa", "001"), ("BQabc", "00111"), ("BQab", "0000")]
)
def test_unequal_answers_have_no_partners(tokens, trained):
    partners, spans = locate([example("Bqab", "0011", 1), example(tokens, trained, 2)], 12, 1)
    assert (partners == -1).all()
    assert spans[0, 0].tolist() == [1, 2] and spans[0, 1, 0] == 5


def test_the_same_question_twice_is_its_last_position():
    _, spans = locate([example("Bqab", "0011", 1), example("Bqab", "0011", 2)], 8, 1)
    assert spans.tolist() == [[[1, 2], [5, 6]]]


def test_a_batch_has_them_only_where_they_are_asked_for():
    row = [example("Bqab", "0011", 1), example("BQab", "0011", 2)]
    plain = assemble(row, [], 8, 0, 0, 1)
    assert plain.partners is None and stack([plain, plain]).spans is None
    partners, spans = locate(row, 8, 2)
    batch = stack([plain._replace(partners=partners, spans=spans)] * 3)
    assert batch.partners is not None and batch.partners.shape == (3, 8)
    assert batch.spans is not None and batch.spans.shape == (3, 2, 2, 2)


def test_most_pairs_of_a_row():
    assert most_pairs([20, 30], [2, 2], 100, 4, True) == 2  # by slots
    assert most_pairs([20, 30], [2, 2], 30, 9, True) == 1  # by tokens
    assert most_pairs([20, 9, 12], [2, 0, 0], 100, 4, True) == 11  # 9 tokens and no image each
    assert most_pairs([9, 12], [0, 0], 100, 0, False) == 1
