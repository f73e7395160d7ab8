"""BLEU, ROUGE-L and CIDEr by hand, and nlg-eval's own test values."""

import json
import math

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics.captions import bleu, caption_scores, cider, rouge_l

SINGLE = ("this is a good test", ("this is a test", "this is also a test"))


def test_values_of_nlg_evals_own_test():
    scores = caption_scores([SINGLE[0]], [SINGLE[1]])
    assert scores["Bleu_1"] == pytest.approx(0.799999, abs=1e-5)
    assert scores["Bleu_2"] == pytest.approx(0.632455, abs=1e-5)
    assert scores["Bleu_3"] == pytest.approx(0.5108729, abs=1e-5)
    assert scores["Bleu_4"] == pytest.approx(0.0000903602, abs=1e-5)
    assert scores["ROUGE_L"] == pytest.approx(0.9070631, abs=1e-5)
    assert scores["CIDEr"] == 0  # one image: every n-gram is in all references
    accents = caption_scores(
        ["Le test est en français."], [["Test en français.", "Le test en français."]]
    )
    assert accents["Bleu_3"] == pytest.approx(0.0000051, abs=1e-6)
    assert accents["ROUGE_L"] == pytest.approx(0.9070631, abs=1e-6)


def test_bleu_by_hand():
    """2 of 3 words match; the closest reference has 4 words: brevity exp(1 - 4/3)."""
    one, two, three, four = bleu(["a b x"], [["a b c d", "a b c d e f"]])
    brevity = math.exp(1 - 4 / 3)
    assert one == pytest.approx(2 / 3 * brevity)
    assert two == pytest.approx(math.sqrt(2 / 3 * 1 / 2) * brevity)
    assert three < 1e-4 and four < 1e-4
    # a word counts as many times as a reference holds it, whichever holds it most
    assert bleu(["a a a"], [["a b c", "a a c"]])[0] == pytest.approx(2 / 3)


def test_of_two_references_as_close_the_shorter():
    assert bleu(["a b c"], [["a b c d", "a b"]])[0] == pytest.approx(1)


def test_rouge_by_hand():
    """Common subsequence "the cat": precision 2/3, recall 2/4."""
    precision, recall, beta = 2 / 3, 2 / 4, 1.2**2
    expected = (1 + beta) * precision * recall / (recall + beta * precision)
    assert rouge_l("the black cat", ["the cat sat down"]) == pytest.approx(expected)
    assert rouge_l("dog", ["cat"]) == 0 and rouge_l("cat", ["cat"]) == pytest.approx(1)
    # precision and recall may come from different references
    assert rouge_l("a b", ["a b c d", "a"]) == pytest.approx(1)


def test_cider_by_hand():
    """Two images, one word each that the other does not have: 1-grams agree, no longer ones."""
    assert cider(["cat", "cow"], [["cat"], ["dog"]]) == pytest.approx([10 / 4, 0])
    # two words: 1-grams and 2-grams agree
    assert cider(["a cat", "x"], [["a cat"], ["a dog"]])[0] == pytest.approx(10 * 2 / 4)
    # "cat cat" against "cat": clipped to 1 x 1 over 2 x 1, and one 2-gram more
    penalty = math.exp(-1 / 72)
    assert cider(["cat cat", "x"], [["cat"], ["dog"]])[0] == pytest.approx(10 / 4 / 2 * penalty)


def test_refusals():
    with pytest.raises(ConfigError, match="captions: none"):
        caption_scores([], [])
    with pytest.raises(ConfigError, match="image 0 has no references"):
        caption_scores(["a"], [[]])


@pytest.mark.realdata
def test_files_of_nlg_eval_to_the_last_printed_digit(shared):
    folder = shared / "realdata" / "metrics" / "caption_nlgeval"
    expected = json.loads((folder / "expected.json").read_text())
    answers, first, second = (
        (folder / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")
    )
    scores = caption_scores(answers, list(zip(first, second, strict=True)))
    for name, value in scores.items():
        assert f"{value:.6f}" == f"{expected['corpus'][name]:.6f}", name
    for case in expected["single"]:
        for name, value in caption_scores([case["hyp"]], [case["refs"]]).items():
            assert value == pytest.approx(case.get(name, value), abs=1e-6), name
