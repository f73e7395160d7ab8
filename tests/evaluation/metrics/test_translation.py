"""chrF and BLEU: worked values, and what is stored beside them."""

import sys

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics.translation import sentence_scores, translation_scores

ANSWER, REFERENCE = "Txakur beltz bat belardian.", "Txakur beltz bat belardian korrika."


def test_worked_values():
    scores = sentence_scores(ANSWER, REFERENCE)
    assert scores["chrf"] == pytest.approx(76.1154, abs=5e-5)
    assert scores["chrf++"] == pytest.approx(75.6891, abs=5e-5)
    assert scores["bleu"] == pytest.approx(57.893, abs=5e-4)


def test_a_corpus_and_its_signatures():
    scores, signatures = translation_scores([ANSWER, REFERENCE], [[REFERENCE], [REFERENCE]])
    assert set(scores) == set(signatures) == {"chrf", "chrf++", "bleu"}
    assert all(50 < score < 100 for score in scores.values())
    assert "nw:0" in signatures["chrf"] and "nw:2" in signatures["chrf++"]
    assert "tok:13a" in signatures["bleu"]
    assert all("version:" in signature for signature in signatures.values())


def test_several_references():
    """As many as each text has; one that is the answer is enough."""
    several = [["Katu bat.", ANSWER], [REFERENCE]]
    scores, signatures = translation_scores([ANSWER, REFERENCE], several)
    assert scores == {name: pytest.approx(100) for name in ("chrf", "chrf++", "bleu")}
    assert "nrefs:var" in signatures["bleu"]


def test_refusals(monkeypatch):
    with pytest.raises(ConfigError, match="no texts"):
        translation_scores([], [])
    with pytest.raises(ConfigError, match="1 texts, 2 of them with references"):
        translation_scores(["a"], [["a"], ["b"]])
    with pytest.raises(ConfigError, match="1 texts, 0 of them with references"):
        translation_scores(["a"], [[]])
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"need sacrebleu: pip install 'mllm-jax\[evaluation\]'"):
        translation_scores(["a"], [["a"]])
