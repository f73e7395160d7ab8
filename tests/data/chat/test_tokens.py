"""Tokens of filled prompt templates and placeholders by hand, and the borders of answers."""

import numpy as np
import pytest

from mllm_jax.batch import NEWLINE
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.prompt_template import Run
from mllm_jax.data.chat.tokens import Flat, counts, expand, expand_all, flatten, loss_mask, starts


def test_expand():
    tokens, weights = np.array([5, 9, 6, 9, 7], np.int32), np.array([0, 1, 0, 0, 1], np.float32)
    wide = expand(
        tokens, weights, 9, [np.arange(3, dtype=np.int32), np.arange(3, 6, dtype=np.int32)]
    )
    assert wide.tokens.tolist() == [5, 9, 9, 9, 6, 9, 9, 9, 7]
    assert wide.weights.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert wide.placeholders.tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, -1]


def test_images_of_different_widths():
    """The first image takes three placeholders, one of them a newline; the second takes two."""
    tokens, weights = np.array([9, 5, 9], np.int32), np.array([0, 1, 0], np.float32)
    images = [np.array([0, 3, NEWLINE], np.int32), np.array([4, 5], np.int32)]
    wide = expand(tokens, weights, 9, images)
    assert wide.tokens.tolist() == [9, 9, 9, 5, 9, 9]
    assert wide.weights.tolist() == [0, 0, 0, 1, 0, 0]
    assert wide.placeholders.tolist() == [0, 3, NEWLINE, -1, 4, 5]
    both = flat([9, 5, 9, 9, 7], [0, 1, 0, 0, 1], [3, 5])
    first, second = expand_all(both, 9, 2, [images, None])
    assert lists(first) == lists(wide)
    assert second.placeholders.tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match="2 image tokens, placeholders of 1 images"):
        expand(tokens, weights, 9, images[:1])


def flat(tokens: list[int], trained: list[int], ends: list[int]) -> Flat:
    return Flat(np.array(tokens, np.int32), np.array(trained, np.bool_), np.array(ends, np.int64))


def lists(found) -> list[list]:
    return [x.tolist() for x in found]


def test_many_are_expanded_as_one_by_one():
    first, second = expand_all(flat([5, 9, 6, 9, 7], [0, 0, 1, 0, 1], [3, 5]), 9, 2)
    assert lists(first) == [[5, 9, 9, 6], [0, 0, 0, 1], [-1, 0, 1, -1]]
    assert lists(second) == [[9, 9, 7], [0, 0, 1], [0, 1, -1]]
    assert [x.dtype for x in second] == ["int32", "float32", "int32"]


def test_flatten():
    """Trained are answers, of "ca t" a half, and the 8 after each."""
    answer, asked, mixed = Run("cat", ((0, 3),)), Run("cat", ()), Run("ca t", ((3, 4),))
    encodings = {answer.key: ([1, 2], ()), mixed.key: ([3, 4], [(0, 3), (3, 4)])}
    made = flatten([[7, asked, 8, answer, 8], [7, mixed, 8]], encodings, ())
    assert lists(made) == [
        [7, 1, 2, 8, 1, 2, 8, 7, 3, 4, 8],
        [0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1],
        [7, 11],
    ]
    assert starts(made.ends).tolist() == [0, 7]
    assert counts(made, 8).tolist() == [2, 1]
    made = flatten([[7, asked, 8, answer, 8]], encodings, (), control=True)
    assert lists(made) == [[7, 1, 2, 8, 1, 2, 8], [1, 0, 0, 1, 1, 1, 1], [7]]
    made = flatten([[7, asked, 8, answer, 8]], encodings, (), end_of_turn=False)
    assert lists(made) == [[7, 1, 2, 8, 1, 2, 8], [0, 0, 0, 0, 1, 1, 0], [7]]
    encodings[mixed.key] = ([3, 4], [(0, 1), (1, 4)])
    with pytest.raises(ConfigError, match=r"^two: a token crosses the border of the answer 't'"):
        flatten([[7, asked, 8], [7, mixed, 8]], encodings, ["one", "two"])


def test_nothing_is_no_special_case():
    nothing = flatten([], {}, ())
    assert lists(nothing) == lists(Flat.join([])) == [[], [], []]
    assert [x.dtype for x in nothing] == [x.dtype for x in Flat.join([])]
    assert counts(nothing, 7).tolist() == starts(nothing.ends).tolist() == []


def test_join():
    parts = [flat([1, 2, 3], [0, 1, 1], [1, 3]), flat([4], [1], [1])]
    assert lists(Flat.join(parts)) == [[1, 2, 3, 4], [0, 1, 1, 1], [1, 3, 4]]


def test_marks_of_a_span():
    run = Run("\n\nKatu bat", ((2, 10),))
    assert list(loss_mask(run, [(0, 2), (2, 4), (4, 6), (6, 10)])) == [0, 1, 1, 1]


def test_a_token_on_the_border_of_a_span():
    """It is one of the answer's if only white space of it is outside."""
    run = Run("ASSISTANT: Ondo.", ((11, 15),))
    tokens = [(0, 9), (9, 10), (10, 12), (12, 15), (15, 16)]
    assert list(loss_mask(run, tokens)) == [0, 0, 1, 1, 0]
    alone = [(0, 9), (9, 10), (10, 11), (11, 12), (11, 12), (12, 15), (15, 16)]
    assert list(loss_mask(run, alone)) == [0, 0, 0, 1, 1, 1, 0]
    for crossing in ([(9, 12), (12, 15)], [(10, 12), (12, 16)]):
        with pytest.raises(ConfigError, match="crosses the border of the answer 'Ondo'"):
            loss_mask(run, crossing)
    spaces = Run("a   b", ((2, 5),))
    with pytest.raises(ConfigError, match="of the answer '  b'; trim the white space around it"):
        loss_mask(spaces, [(0, 1), (1, 3), (3, 5)])


def test_parts_of_one_letter_are_all_trained():
    """A letter of several bytes may be several tokens with the same place."""
    run = Run("ab", ((1, 2),))
    assert list(loss_mask(run, [(0, 1), (1, 2), (1, 2)])) == [0, 1, 1]
