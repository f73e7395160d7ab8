"""Answer-language fidelity by hand, and on thousands of sentences that people wrote."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.language_id import Py3LangID
from mllm_jax.evaluation.metrics.fidelity import fidelity, image_loss, shares

LANGUAGES = {
    "eu": "eus",
    "it": "ita",
    "gl": "glg",
    "ca": "cat",
    "es": "spa",
    "fr": "fra",
    "en": "eng",
}
BASQUE = "Txakur beltz handi bat belardian korrika dabil."
ENGLISH = "A large black dog is running on the grass."


@pytest.fixture(scope="module")
def langid():
    return Py3LangID()


def test_shares_by_hand():
    assert shares(["eu", "en", "eu", None, None], "eu") == {
        "right": pytest.approx(200 / 3),
        "undecided": pytest.approx(40),
    }
    assert shares([None], "eu") == {"undecided": 100}
    assert image_loss(without_image=97.5, with_image=80.0) == 17.5


def test_answers_in_basque_in_english_and_too_short(langid):
    scores = fidelity(
        [BASQUE, ENGLISH, ENGLISH, "Bai"], [BASQUE, "Bai"], "eu", ["eu", "en"], langid
    )
    assert scores == {
        "language_fidelity": pytest.approx(100 / 3),
        "undecided": 25,
        "identifier_accuracy": 100,
        "identifier_undecided": 50,
    }
    assert set(fidelity([BASQUE], [], "eu", ["eu", "en"], langid)) == {
        "language_fidelity",
        "undecided",
    }
    assert fidelity(["Bai"], ["Ez"], "eu", ["eu", "en"], langid) == {
        "undecided": 100,
        "identifier_undecided": 100,
    }


def test_refusals(langid):
    with pytest.raises(ConfigError, match="language 'br' is not among those to tell apart: eu, en"):
        fidelity([BASQUE], [], "br", ["eu", "en"], langid)
    with pytest.raises(ConfigError, match="no answers"):
        fidelity([], [], "eu", ["eu", "en"], langid)


@pytest.mark.realdata
@pytest.mark.parametrize(("language", "least"), [("eu", 99), ("it", 99), ("gl", 98), ("ca", 99)])
def test_on_sentences_of_tatoeba(language, least, shared, langid):
    """1,000 sentences each: theirs are found; as answers to another language's question, none."""
    folder = shared / "realdata" / "text_tatoeba"
    code = LANGUAGES[language]
    human = (folder / f"tatoeba.{code}-eng.{code}").read_text().splitlines()
    english = (folder / f"tatoeba.{code}-eng.eng").read_text().splitlines()
    scores = fidelity(english, human, language, list(LANGUAGES), langid)
    assert scores["identifier_accuracy"] >= least
    assert scores["language_fidelity"] <= 0.5
