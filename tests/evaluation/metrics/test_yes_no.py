"""Yes/no answers by hand: every rule, in English, Basque and Italian."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.languages import all_languages, language
from mllm_jax.evaluation.metrics import yes_no

EN, EU, IT, CY = (language(code) for code in ("en", "eu", "it", "cy"))


@pytest.mark.parametrize(
    ("answer", "official", "lmms_eval", "ndino", "strict"),
    [
        ("Yes", "yes", "yes", "yes", "yes"),
        ("no", "no", "no", "no", "no"),
        (" No\n", "yes", "no", "no", "no"),  # "No\n" is not the word "No" when split at spaces
        ("No.", "no", None, "no", "no"),
        ("No!!", "yes", None, None, "no"),
        ("NO", "yes", "no", "no", "no"),
        ("No, there is not.", "no", None, None, "no"),
        ("Yes, there is no doubt", "no", None, None, "yes"),
        ("Yes. There is no doubt", "yes", None, None, "yes"),
        ("There is not a cat", "no", None, None, None),
        ("There is a cat", "yes", None, None, None),
        ("Not at all", "yes", None, None, None),
        ("Norway", "yes", None, None, None),
        ("", "yes", None, None, None),
        (".", "yes", None, None, None),
        ("yes .", "yes", None, None, "yes"),
    ],
)
def test_rules_in_english(answer, official, lmms_eval, ndino, strict):
    rules = ("official", "lmms-eval", "ndino", "strict")
    parsed = tuple(yes_no.parse_yes_no(answer, EN, rule) for rule in rules)
    assert parsed == (official, lmms_eval, ndino, strict)


def test_another_language_counts_as_yes_by_the_official_rule():
    """The trap: Basque "ez" under English's words; by its own words it is no."""
    assert yes_no.official("Ez", EN) == "yes" and yes_no.official("Ez, ez dago.", EU) == "no"
    assert yes_no.official("No", IT) == "no" and yes_no.official("Non c'è", IT) == "no"
    scores = yes_no.pope(["no"] * 4, ["Ez", "ez", "No", "Ez dago."], EN)
    assert scores["accuracy"] == 25 and scores["yes_share"] == 75 and scores["unparseable"] == 75
    scores = yes_no.pope(["no"] * 4, ["Ez", "ez", "No", "Ez dago."], EU)
    assert scores["accuracy"] == 75 and scores["unparseable"] == 25


@pytest.mark.parametrize("code", sorted(set(all_languages()) - {"und"}))
def test_the_words_of_a_language_are_read_by_all_rules(code):
    table = language(code)
    for rule in yes_no.RULES:
        assert yes_no.parse_yes_no(table.need("yes")[0].capitalize(), table, rule) == "yes"
        assert yes_no.parse_yes_no(table.need("no")[0].capitalize(), table, rule) == "no"


def test_what_a_rule_cannot_tell():
    """The official rule reads a negation anywhere; the strict one does not."""
    assert not yes_no.unparseable("There is not a cat", EN)
    assert yes_no.unparseable("There is not a cat", EN, "strict")
    assert yes_no.unparseable("There is a cat", EN)
    assert yes_no.unparseable("No.", EN, "lmms-eval") and not yes_no.unparseable("No.", EN, "ndino")


def test_strict_reads_accents_and_answers_of_two_words():
    assert yes_no.strict("Sì, certo", IT) == yes_no.strict("si\u0300", IT) == "yes"
    assert yes_no.strict("Nac oes", CY) == "no" and yes_no.strict("Oes.", CY) == "yes"
    assert yes_no.strict("Baina ez", EU) is None


def test_ndino_in_italian():
    assert yes_no.ndino("Sì.", IT) == "yes" and yes_no.ndino("si", IT) is None
    assert yes_no.ndino("sì .", IT) is None  # one mark is removed, the space before it is not
    assert yes_no.ndino("", IT) is None  # the published program stops here


TRUTHS = ["yes", "yes", "yes", "no", "no", "no", "no", "no"]
ANSWERS = ["Yes", "No", "maybe", "Yes", "No", "No", "perhaps", "no"]


def test_scores_of_the_official_rule_by_hand():
    """3 right yes (one of them "maybe"), 1 missed... : TP 2, FN 1, FP 2, TN 3."""
    assert yes_no.pope(TRUTHS, ANSWERS, EN) == {
        "accuracy": pytest.approx(100 * 5 / 8),
        "precision": pytest.approx(100 * 2 / 4),
        "recall": pytest.approx(100 * 2 / 3),
        "f1": pytest.approx(100 * 4 / 7),
        "yes_share": pytest.approx(100 * 4 / 8),
        "unparseable": pytest.approx(100 * 2 / 8),
    }


def test_scores_of_the_harnesses_by_hand():
    """TP 1, FP 1, "no" for yes 1: "maybe" is missing from recall; yes_share is the truth's."""
    expected = {
        "accuracy": pytest.approx(100 * 4 / 8),
        "precision": pytest.approx(100 * 1 / 2),
        "recall": pytest.approx(100 * 1 / 2),
        "f1": pytest.approx(50),
        "yes_share": pytest.approx(100 * 3 / 8),
        "unparseable": pytest.approx(100 * 2 / 8),
    }
    assert yes_no.pope(TRUTHS, ANSWERS, EN, "lmms-eval") == expected
    assert yes_no.pope(TRUTHS, ANSWERS, EN, "ndino") == expected


def test_scores_of_the_strict_rule_by_hand():
    scores = yes_no.pope(TRUTHS, ANSWERS, EN, "strict")
    assert scores["recall"] == pytest.approx(100 / 3)  # "maybe" is a miss
    assert scores["yes_share"] == 25 and scores["accuracy"] == 50 and scores["f1"] == 40


def test_no_positive_answer_is_zero_not_an_error():
    scores = yes_no.pope(["yes", "no"], ["No", "No"], EN)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("Yes.", "yes"),
        ("y", "yes"),
        ("N", "no"),
        ("x", None),
        ("It is yes", None),  # not within four characters
        ("Nothing", "no"),
        ("", None),
    ],
)
def test_the_rule_of_mme(answer, parsed):
    assert yes_no.mme(answer, EN) == parsed


def test_the_rule_of_mme_in_basque():
    assert yes_no.mme("Bai, horixe", EU) == "yes" and yes_no.mme("b", EU) == "yes"
    assert yes_no.mme("ez dago", EU) == "no" and yes_no.mme("E", EU) == "no"


def test_labels_in_both_languages():
    assert yes_no.truth_of("sì", IT) == yes_no.truth_of("Yes", IT) == "yes"
    assert yes_no.truth_of("ez", EU) == yes_no.truth_of("no", EU) == "no"
    with pytest.raises(ConfigError, match="label 'agian' is neither yes nor no in Basque"):
        yes_no.truth_of("agian", EU)


def test_refusals():
    with pytest.raises(ConfigError, match="rule 'oficial' is not one of official, lmms-eval"):
        yes_no.pope(["yes"], ["yes"], EN, "oficial")
    with pytest.raises(ConfigError, match="none to score"):
        yes_no.pope([], [], EN)
    with pytest.raises(ConfigError, match="no language states no 'negations'"):
        yes_no.pope(["yes"], ["yes"], language("und"))
