"""How scores are summed."""

import math

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics import summary as scoring


def answer(language: str, correct: bool, loss: float, tokens: int, finished: bool = True) -> dict:
    names = ("language", "correct", "loss", "tokens", "finished")
    return dict(zip(names, (language, correct, loss, tokens, finished), strict=True))


def test_scores_by_hand():
    """Loss is weighted by token: (1 x 2.0 + 9 x 1.0) / 10, not the mean of 2.0 and 1.0."""
    answers = [answer("eu", True, 2.0, 1), answer("en", False, 0.5, 4), answer("eu", False, 1.0, 9)]
    answers.append(answer("en", False, 0.5, 4, finished=False))
    scores = scoring.score(answers, ("eu", "en"))
    assert list(scores) == ["eu", "en"]
    assert scores["eu"] == {
        "count": 2,
        "exact_match": 0.5,
        "loss": pytest.approx(1.1),
        "perplexity": pytest.approx(math.exp(1.1)),
        "answer_perplexity": pytest.approx((math.exp(2.0) + math.exp(1.0)) / 2),
        "answers_left_out": 0,
        "answer_tokens": 10,
        "unfinished": 0,
    }
    assert scores["en"]["exact_match"] == 0 and scores["en"]["unfinished"] == 1


def test_perplexities_of_llava_ndino():
    """Three answers: 3.3201, 2.2255 and 1808.04, the last of which is left out of the mean."""
    answers = [answer("it", False, loss, n) for n, loss in [(3, 1.2), (10, 0.8), (2, 7.5)]]
    (scores,) = scoring.score(answers, ("it",)).values()
    assert scores["answer_perplexity"] == pytest.approx(2.772829, abs=5e-7)
    assert scores["answers_left_out"] == 1
    assert scores["perplexity"] == pytest.approx(5.890456, abs=5e-7)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 701.0])
def test_a_broken_model_is_refused(loss):
    with pytest.raises(ConfigError, match=r"the loss on 'eu' is .*broken"):
        scoring.score([answer("eu", False, loss, 3)], ("eu",))


def test_table():
    scores = scoring.score(
        [answer("eu", True, 0.25, 12), answer("en", False, 2.0, 3)], ("eu", "en")
    )
    assert scoring.table(scores).split("\n") == [
        "| language | answers | exact match |   loss | perplexity | answer tokens | unfinished |",
        "| -------- | ------: | ----------: | -----: | ---------: | ------------: | ---------: |",
        "| eu       |       1 |     100.0 % | 0.2500 |      1.284 |            12 |          0 |",
        "| en       |       1 |       0.0 % | 2.0000 |      7.389 |             3 |          0 |",
        "",
    ]


def test_what_was_not_measured_is_no_number():
    answers = [answer("eu", True, 1.0, 2) | {"loss": None, "tokens": None}]
    scores = scoring.score(answers, ("eu",))
    assert scores["eu"] | {"unfinished": 0} == scores["eu"]
    assert [
        scores["eu"][key] for key in ("exact_match", "loss", "perplexity", "answer_tokens")
    ] == [*(1.0, None, None, None)]
    cells = [cell.strip() for cell in scoring.table(scores).splitlines()[2].split("|")]
    assert cells[1:-1] == ["eu", "1", "100.0 %", "-", "-", "-", "0"]
