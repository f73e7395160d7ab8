"""MME's scores by hand."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics.mme import COGNITION, PERCEPTION, mme

ANSWERS = [
    *[("existence", "a.jpg", True), ("existence", "a.jpg", True)],  # 100 + 100
    *[("existence", "b.jpg", True), ("existence", "b.jpg", False)],  # 50 + 0
    *[("OCR", "a.jpg", False), ("OCR", "a.jpg", False)],  # 0: the same file in another category
    *[("code_reasoning", "c.jpg", True), ("code_reasoning", "c.jpg", True)],
]


def test_scores_by_hand():
    assert mme(ANSWERS) == {
        "perception": 125,
        "cognition": 200,
        "accuracy": pytest.approx(100 * 5 / 8),
        "accuracy_plus": pytest.approx(100 * 2 / 4),
        "existence": 125,
        "OCR": 0,
        "code_reasoning": 200,
    }


def test_all_right_is_2000_and_800():
    answers = [(category, "x", True) for category in (*PERCEPTION, *COGNITION)] * 2
    scores = mme(answers)
    assert (scores["perception"], scores["cognition"]) == (2000, 800)


def test_refusals():
    with pytest.raises(ConfigError, match=r"'b\.jpg' of OCR: MME asks two questions .* got 1"):
        mme([*ANSWERS, ("OCR", "b.jpg", True)])
    with pytest.raises(ConfigError, match="category 'ocr' is not one of existence"):
        mme([("ocr", "a", True), ("ocr", "a", True)])
    with pytest.raises(ConfigError, match="no answers"):
        mme([])
