"""VQA soft accuracy by hand: the three published normalisations, and other languages' words."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.languages import language
from mllm_jax.evaluation.metrics import vqa

EN, EU, IT, FR = (language(code) for code in ("en", "eu", "it", "fr"))


@pytest.mark.parametrize(("same", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_leave_one_out_over_ten(same, accuracy):
    """Three of ten: seven annotators see three matches, three see two: (7 x 1 + 3 x 2/3) / 10."""
    truths = ["red"] * same + ["blue"] * (10 - same)
    assert vqa.leave_one_out("red", truths) == pytest.approx(accuracy)
    assert vqa.direct_answer("red", truths) == pytest.approx(min(1, same / 3))
    for variant in vqa.VARIANTS:
        assert vqa.soft_accuracy("Red.", truths, EN, variant) == pytest.approx(accuracy)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_leave_one_out_is_the_published_loop(truths):
    accuracies = [
        min(1, sum(truths[j] == "a" for j in range(len(truths)) if j != i) / 3)
        for i in range(len(truths))
    ]
    assert vqa.leave_one_out("a", truths) == pytest.approx(statistics.mean(accuracies))


@pytest.mark.parametrize(
    ("text", "official", "evalai"),
    [
        ("The cat.", "cat", "cat"),
        ("two dogs", "2 dogs", "2 dogs"),
        ("None", "0", "0"),
        ("dont know", "don't know", "don't know"),
        ("man's hat", "man's hat", "man 's hat"),
        ("black/white", "black white", "black white"),  # inside a word: a space
        ("black / white", "black white", "black white"),  # beside a space: nothing
        ("t-shirt", "t shirt", "t shirt"),
        ("1,000", "1000", "1000"),
        ("red, white-blue", "red white blue", "red white blue"),
        ("1,000 t-shirts", "1000 tshirts", "1000 t shirts"),  # EvalAI has removed the comma before
        ("3.5", "3.5", "3.5"),
        ("5 p.m.", "5 pm", "5 pm"),
        ("a\nb\tc", "b c", "b c"),
        ("a", "", ""),
        ("what?", "what ", "what"),
    ],
)
def test_normalisations_by_hand(text, official, evalai):
    assert vqa.normalise_official(text, EN) == official.strip()
    assert vqa.normalise_evalai(text, EN) == evalai


def test_the_official_rule_treats_truths_less_than_answers():
    """Truths that agree are compared as they are; others lose punctuation, but keep articles."""
    assert vqa.soft_accuracy("yes", ["Yes"] * 10, EN) == 0
    assert vqa.soft_accuracy("yes", ["Yes"] * 10, EN, "evalai") == 1
    assert vqa.soft_accuracy("the dog", ["the dog"] * 10, EN) == 0
    truths = ["the dog"] * 9 + ["cat"]
    assert vqa.soft_accuracy("the dog", truths, EN) == 0
    assert vqa.soft_accuracy("the dog", truths, EN, "evalai") == 1
    assert vqa.soft_accuracy("the dog", truths, EN, "lmms-eval") == 1
    truths = ["black/white"] * 5 + ["cat"] * 5
    assert vqa.soft_accuracy("black white", truths, EN) == 1
    # a mark at the very end becomes a space, which truths keep and answers lose
    assert vqa.soft_accuracy("dog!", ["dog!"] * 5 + ["cat"] * 5, EN) == 0
    assert vqa.soft_accuracy("dog", ["dog!"] * 10, EN, "lmms-eval") == 0


def test_lmms_eval_leaves_truths_that_agree():
    assert vqa.soft_accuracy("two", ["two"] * 10, EN, "lmms-eval") == 0
    assert vqa.soft_accuracy("two", ["two"] * 9 + ["2"], EN, "lmms-eval") == 1


def test_italian_keeps_its_preposition_and_loses_its_articles():
    """English's rules would drop the Italian preposition "a"."""
    assert vqa.normalise_evalai("a casa", IT) == "a casa"
    assert vqa.normalise_evalai("a casa", EN) == "casa"
    assert vqa.normalise_evalai("la casa", IT) == vqa.normalise_evalai("Casa.", IT) == "casa"
    assert vqa.normalise_evalai("l'uomo", IT) == vqa.normalise_evalai("l’uomo", IT) == "uomo"
    assert vqa.normalise_evalai("due gatti", IT) == "2 gatti"


def test_a_word_that_is_number_and_article():
    """ "un gatto" loses its article; "uno" as an answer is the number."""
    assert vqa.normalise_official("un gatto", IT) == "gatto"
    assert vqa.normalise_official("Uno.", IT) == vqa.normalise_official("1", IT) == "1"
    assert vqa.normalise_official("une", FR) == "1"


def test_basque_has_no_article_to_drop():
    assert vqa.normalise_official("Hiru katu beltz.", EU) == "3 katu beltz"
    assert vqa.normalise_official("a", EU) == "a"
    assert vqa.soft_accuracy("Bi.", ["bi"] * 5 + ["2"] * 5, EU, "evalai") == 1


def test_accents_are_compared_composed():
    assert vqa.soft_accuracy("si\u0300", ["sì"] * 10, IT) == 1


def test_without_a_table():
    none = language("und")
    assert vqa.normalise_official("The two cats.", none) == "the two cats"


def test_multiple_choice_of_aokvqa_is_exact():
    assert vqa.multiple_choice("surfboard", "surfboard")
    assert not vqa.multiple_choice("Surfboard", "surfboard")


def test_refusals():
    for truths in ([], ["a"]):  # left out one at a time, of one annotator nobody is left
        with pytest.raises(ConfigError, match=r"annotators, got [01]; with one true answer"):
            vqa.soft_accuracy("a", truths, EN)
    with pytest.raises(ConfigError, match="variant 'oficial' is not one of official, evalai"):
        vqa.soft_accuracy("a", ["a", "b"], EN, "oficial")
