"""The language of short answers, told by the words of the true ones."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics.word_fidelity import (
    identify_by_words,
    own_words,
    word_fidelity,
)

TRUTHS = {"eu": ["bederatzi", "Laurogeita hamar.", "auto"], "en": ["nine", "ninety", "auto"]}


def test_words_of_several_languages_tell_nothing():
    assert own_words(TRUTHS) == {
        "eu": {"bederatzi", "laurogeita", "hamar"},
        "en": {"nine", "ninety"},
    }


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("Bederatzi!", "eu"),
        ("laurogeita, hamaika", "eu"),
        ("ninety", "en"),
        ("ninety bederatzi", None),
        ("auto", None),
        ("99", None),
        ("", None),
    ],
)
def test_an_answer_is_in_the_language_of_its_words(answer: str, language: str | None):
    assert identify_by_words([answer], own_words(TRUTHS)) == [language]


def test_shares_are_of_the_decided_answers():
    words = own_words(TRUTHS)
    scores = word_fidelity(["hamar", "nine", "hamar hamar", "auto"], "eu", words)
    assert scores == {"word_fidelity": pytest.approx(200 / 3), "word_undecided": 25.0}
    assert word_fidelity(["auto"], "eu", words) == {"word_undecided": 100.0}
    with pytest.raises(ConfigError, match="no answers"):
        word_fidelity([], "eu", words)
