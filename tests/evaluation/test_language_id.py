"""The language of an answer: what is left out, what is undecided, both kinds of identifiers."""

import sys
import types

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.language_id import (
    FastText,
    Py3LangID,
    identify,
    meaningful,
    open_identifier,
)

SENTENCES = {
    "eu": "Txakur beltz handi bat belardian korrika dabil haurrekin.",
    "en": "A large black dog is running on the grass with the children.",
    "it": "Un grande cane nero corre sul prato insieme ai bambini.",
    "gl": "Un can negro moi grande corre pola herba cos nenos da aldea.",
}


@pytest.fixture(scope="module")
def langid():
    return Py3LangID()


class Fixed:
    """Answers with probabilities given beforehand."""

    name = "fixed"

    def __init__(self, chances):
        self.chances = chances

    def probabilities(self, text, languages):
        return self.chances


def test_sentences(langid):
    assert identify(list(SENTENCES.values()), list(SENTENCES), langid) == list(SENTENCES)
    assert langid.name.startswith("py3langid ")
    assert sum(langid.probabilities(SENTENCES["eu"], ["eu", "en"]).values()) == pytest.approx(1)


def test_short_answers_are_undecided(langid):
    """Letters count, not characters: 19 letters and many marks are undecided, 20 are not."""
    assert identify(["Bai", "", "B", "12"], ["eu", "en"], langid) == [None] * 4
    sure = Fixed({"eu": 0.9, "en": 0.1})
    assert identify(["ab, " * 9 + "c!!", "ab, " * 10], ["eu", "en"], sure) == [None, "eu"]


def test_close_calls_are_undecided():
    text = "a" * 30
    assert identify([text], ["eu", "en"], Fixed({"eu": 0.59, "en": 0.41})) == [None]
    assert identify([text], ["eu", "en"], Fixed({"en": 0.65, "eu": 0.35})) == ["en"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<image>\nB. txakurra 12", "txakurra"),
        ("(A) katua, B) oiloa", "katua, oiloa"),
        ("<image 2> katua", "katua"),
        ("A katua eta E.T. filma", "A katua eta E.T. filma"),
    ],
)
def test_what_says_nothing_about_the_language_is_left_out(text, clean):
    assert meaningful(text) == clean


def test_a_fasttext_model(tmp_path, monkeypatch):
    """Labels of GlotLID (three letters and a script) and of lid.176, among the candidates alone."""
    file = tmp_path / "model.bin"
    file.write_bytes(b"a model")
    labels = {
        "__label__spa_Latn": 0.5,
        "__label__eus_Latn": 0.2,
        "__label__eu": 0.1,
        "__label__eng_Latn": 0.1,
    }

    class Model:
        def predict(self, text, k):
            assert k == -1 and "\n" not in text
            return tuple(labels), tuple(labels.values())

    module = types.SimpleNamespace(load_model=lambda path: Model())
    monkeypatch.setitem(sys.modules, "fasttext", module)
    identifier = open_identifier(file)
    chances = identifier.probabilities("kaixo\nmundua", ["eu", "en", "xx"])
    assert chances == pytest.approx({"eu": 0.75, "en": 0.25, "xx": 0})
    assert identifier.probabilities("a", ["xx", "yy"]) == {"xx": 0, "yy": 0}
    assert identifier.name.startswith("fastText model.bin sha256:")
    assert identify(["kaixo mundua, zer moduz zaude"], ["eu", "en"], identifier) == ["eu"]
    assert identify(["kaixo mundua, zer moduz zaude"], ["xx", "yy"], identifier) == [None]


def test_refusals(tmp_path, monkeypatch, langid):
    with pytest.raises(ConfigError, match="needs two languages or more to tell apart, got eu"):
        identify(["a"], ["eu"], langid)
    with pytest.raises(ConfigError, match=r"py3langid .*Unknown language code"):
        identify(["a" * 30], ["eu", "qq"], langid)

    def load_model(path):
        raise ValueError(f"{path} has wrong file format!")

    monkeypatch.setitem(sys.modules, "fasttext", types.SimpleNamespace(load_model=load_model))
    with pytest.raises(ConfigError, match="no such file; give the model file"):
        FastText(tmp_path / "none.bin")
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(ConfigError, match=r"not a fastText model: .*wrong file format"):
        FastText(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("module", "file", "package"),
    [
        ("py3langid.langid", None, "mllm-jax[evaluation]"),
        ("fasttext", "model.bin", "fasttext-predict"),
    ],
)
def test_a_library_that_is_not_installed(module, file, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(ConfigError) as error:
        open_identifier(file)
    assert f"pip install '{package}'" in str(error.value)
