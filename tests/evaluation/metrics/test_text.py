"""When two texts are the same: our normalisation, and LLaVA-NDiNO's."""

import pytest

from mllm_jax.evaluation.metrics.text import exact_match, exact_match_ndino, normalise_ndino

SAME = [
    ("Hirurogeita hamazazpi.", "hirurogeita hamazazpi"),
    ("  hogei\n eta  bat ", "Hogei eta bat"),
    ("Bai!?", "bai"),
    ("bai .", "Bai"),
    ("¿Sí?", "¿sí"),
    ("café", "cafe\u0301"),  # composed and decomposed
    ("STRASSE", "straße"),
    ("a-b", "A-B."),
    ("...", "..."),
    ("Katu bat»", "katu bat)"),
    ("katu bat –", "katu bat_"),
]
DIFFERENT = [
    ("hamar", "hamaika"),
    ("", "."),
    ("ez", "ez da"),
    ("a b", "ab"),
    ("café", "cafe"),
    ("3.5", "35"),
    (".bat", "bat"),
    ("+", "-"),
]


@pytest.mark.parametrize(("answer", "truth"), SAME)
def test_counts_as_right(answer, truth):
    assert exact_match(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_counts_as_wrong(answer, truth):
    assert not exact_match(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("l'uomo", "luomo"), ("Sì, certo", "sì certo"), ("L'UOMO!", "luomo"), ("T-shirt", "tshirt")],
)
def test_counts_as_right_for_ndino(answer, truth):
    assert exact_match_ndino(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"), [("T-shirt", "t shirt"), ("sì  certo", "sì certo"), ("«sì»", "sì")]
)
def test_counts_as_wrong_for_ndino(answer, truth):
    """Marks vanish without leaving a space, spaces stay, and only ASCII's marks are removed."""
    assert not exact_match_ndino(answer, truth)


def test_both_rules_disagree_in_both_directions():
    assert exact_match_ndino("l'uomo", "luomo") and not exact_match("l'uomo", "luomo")
    assert exact_match("katu  bat", "katu bat") and not exact_match_ndino("katu  bat", "katu bat")


def test_ndino_removes_all_of_ascii_punctuation():
    assert normalise_ndino("""!"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~A""") == "a"
