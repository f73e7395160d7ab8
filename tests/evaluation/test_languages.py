"""The tables of words per language: complete, consistent, and never another language's."""

import unicodedata

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.languages import Language, all_languages, language

OURS = sorted(all_languages())
SPOKEN = [code for code in OURS if code != "und"]


def test_the_languages_of_the_systems_are_there():
    assert {"en", "eu", "it", "es", "ca", "gl", "fr", "cy"} <= set(OURS)
    assert (language("eu").yes, language("eu").no) == (("bai",), ("ez",))
    assert language("it").need("yes")[0] == "sì"
    assert language("en").articles == ("a", "an", "the")
    assert language("eu-ES") == language("EU") == language("eu_ES") == language("eu")


@pytest.mark.parametrize("code", SPOKEN)
def test_a_table_is_complete(code):
    table = language(code)
    fields = ("yes", "no", "negations", "articles", "numbers", "contractions")
    yes, no, negations, articles, numbers, _ = map(table.need, fields)
    assert table.name and table.endonym and len(table.iso3) == 3
    assert set(yes).isdisjoint(no)
    assert set(numbers.values()) == {str(number) for number in range(11)}
    # each word that says no also makes an answer no by POPE's rule, in both cases
    assert {form for word in no for form in (word, word.capitalize())} <= {*negations}
    words = (*yes, *no, *articles, *numbers)
    assert all(word == unicodedata.normalize("NFC", word).lower() for word in words)


def test_the_contractions_of_english_are_the_published_ones():
    """vqaEval.py has 118; four can never occur in a lower-cased text or change nothing."""
    contractions = language("en").need("contractions")
    assert contractions["dont"] == "don't" and contractions["'ow'sat"] == "'ow's'at"
    assert all(word == word.lower() for word in contractions)
    same = {word for word, form in contractions.items() if word == form}
    assert not same


def test_a_language_without_a_table_is_refused():
    with pytest.raises(ConfigError, match=r"language 'br' has no table of words: .*give its words"):
        language("br")
    with pytest.raises(ConfigError, match="did you mean 'eu'"):
        language("eus")


def test_no_language_is_an_explicit_choice():
    table = language("und")
    assert (table.articles, table.numbers, table.contractions) == ((), {}, {})
    with pytest.raises(ConfigError, match="the table of no language states no 'yes', which yes/no"):
        table.need("yes")


def test_a_table_of_ones_own_may_leave_out_what_is_not_needed():
    breton = Language(name="Breton", yes=("ya",), no=("nann",))
    assert breton.need("yes") == ("ya",)
    with pytest.raises(ConfigError, match="the table of Breton states no 'articles', which VQA"):
        breton.need("articles")


def test_words_are_compared_composed_and_in_lower_case():
    table = Language(name="Italian", yes=("Si\u0300",), articles=("UN",), numbers={"Due": "2"})
    assert (table.yes, table.articles, table.numbers) == (("sì",), ("un",), {"due": "2"})
