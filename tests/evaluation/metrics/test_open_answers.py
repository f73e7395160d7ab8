"""MMMU's open questions, by hand."""

import pytest

from mllm_jax.evaluation.metrics.open_answers import open_match


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("1250", "1,250", True),
        ("So the total is 1,250.0", "1250", True),
        ("The answer is 3.14159", "3.14", True),  # rounded to two places
        ("2e3 metres", "2000", True),
        ("x = 5\ny = 7", "7", True),  # "=" leads in the last line alone
        ("x = 5\ny = 7", "5", False),
        ("It is a dog", "dog", True),
        ("A dog, so it could be a cat", "dog", False),  # behind the last leading word
        ("DOG.", "dog", True),
        ("dogs", "dog", True),  # part of a text
        ("dig", "dog", False),
        ("vitamin c", "C", True),  # a single letter beside a space
        ("calcium", "C", False),
        ("", "dog", False),
        ("Txakur bat da", "txakur", True),
        ("15", "5", False),
        ("-5", "5", False),
        ("1.005e2", "100.5", True),
    ],
)
def test_by_hand(answer, truth, right):
    assert open_match(answer, [truth]) is right


def test_one_of_several_truths():
    assert open_match("It is 12", ["twelve", "12"])
    assert not open_match("It is 13", ["twelve", "12"])
