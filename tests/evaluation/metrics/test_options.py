"""Multiple choice by log-likelihood, by hand and beside numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics import options


def test_three_ways_disagree():
    """Sums -4, -6, -9; per character -4/2, -6/6, -9/4; per token -4/1, -6/2, -9/9."""
    chosen = options.chosen([-4.0, -6.0, -9.0], ["ez", "agian!", "baie"], [1, 2, 9])
    assert chosen == {"acc": 0, "acc_norm": 1, "acc_token": 2}


def test_characters_are_counted_not_bytes():
    """-4 / 4 against -3.6 / 4; by bytes the first would be -4 / 8."""
    assert options.chosen([-4.0, -3.6], ["ññññ", "abcd"], [1, 1])["acc_norm"] == 1


def test_the_first_of_equal_ones():
    chosen = options.chosen([-2.0, -2.0], ["aa", "bb"], [2, 2])
    assert chosen == {"acc": 0, "acc_norm": 0, "acc_token": 0}
    assert options.chosen([float("-inf"), -3.0], ["a", "b"], [1, 1])["acc"] == 1


@given(st.lists(st.tuples(st.floats(-99, 0), st.integers(1, 9), st.integers(1, 9)), min_size=1))
def test_as_numpy_chooses(items):
    sums, characters, tokens = (list(column) for column in zip(*items, strict=True))
    texts = ["x" * number for number in characters]
    assert options.chosen(sums, texts, tokens) == {
        "acc": np.argmax(sums),
        "acc_norm": np.argmax(np.array(sums) / np.array(characters, dtype=float)),
        "acc_token": np.argmax(np.array(sums) / np.array(tokens)),
    }


def test_standard_error():
    """838 of 1,511 right: 0.5546 +- 0.0128, as lm-eval prints XStoryCloze in Basque."""
    values = [1.0] * 838 + [0.0] * 673
    assert sum(values) / len(values) == pytest.approx(0.5545996029119789)
    assert options.standard_error(values) == pytest.approx(0.012790178438084793, rel=1e-12)
    assert options.standard_error([1.0]) == 0


@pytest.mark.parametrize(
    ("sums", "texts", "tokens", "message"),
    [
        ([], [], [], "0 log-likelihoods"),
        ([-1.0], ["a", "b"], [1], "1 log-likelihoods, 2 texts and 1 token counts"),
        ([float("nan")], ["a"], [1], "not a number"),
        ([-1.0], [""], [1], "one is empty"),
        ([-1.0], ["a"], [0], "one is empty"),
    ],
)
def test_refusals(sums, texts, tokens, message):
    with pytest.raises(ConfigError, match=message):
        options.chosen(sums, texts, tokens)
