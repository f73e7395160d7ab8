"""Character and word error rates by hand; the distance beside the table it is defined by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics.ocr import (
    character_edits,
    edit_distance,
    error_rate,
    normalise_ocr,
    word_edits,
)


def test_rates_by_hand():
    """Two edits: the comma goes, an n comes; "kaixo" and "zauden?" are the two wrong words."""
    pair = ("Kaixo, zer moduz zaude?", "kaixo zer  moduz zauden?")
    assert character_edits(*pair) == (2, 23)
    assert word_edits(*pair) == (2, 4)
    assert error_rate([(2, 23), (0, 77)]) == 2
    assert error_rate([(9, 3)]) == 300  # an answer much longer than the truth


def test_normalisation():
    assert normalise_ocr(" CAFE\u0301\n\tona ") == "café ona"
    assert character_edits("", "abc") == (3, 3) and character_edits("abc", "") == (3, 0)
    assert word_edits("", "") == (0, 0)


@given(st.text("abñ", max_size=12), st.text("abñ", max_size=12))
def test_the_distance_is_the_one_of_the_table(first, second):
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    assert edit_distance(first, second) == row[-1]


def test_a_long_page():
    page = "zer moduz " * 300
    assert edit_distance(page, page.replace("m", "n")) == 300
    assert edit_distance(page.split(), page.split()[1:]) == 1


def test_refusals():
    with pytest.raises(ConfigError, match="hold no text"):
        error_rate([(3, 0)])
