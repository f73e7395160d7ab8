"""Multiple choice by letter: each benchmark's rule by hand; no rule guesses."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics import letters

OPTIONS = ("a cat", "a dog", "a black cow", "none of them")


@pytest.mark.parametrize(
    ("answer", "letter", "seed", "mmstar", "scienceqa"),
    [
        ("B", "B", "B", "B", "B"),
        ("b", "B", "B", "B", None),
        (" B ", "B", "B", "B", "B"),
        ("B.", "B", "B", "B", None),  # neither the letter alone nor followed by ". "
        ("B. a dog", "B", "B", "B", "B"),
        ("(B) a dog", "B", None, "B", None),
        ("B\na dog", "B", "B", "B", "B"),  # scienceqa: a line break is read as ". "
        ("A cat", "A", "A", "A", None),
        ("A tree", None, "A", "A", None),
        ("Dogs", None, "D", "D", None),
        ("a dog", "B", "A", "A", None),
        ("Option C", None, None, "C", None),
        ("The answer is C", None, None, "C", "C"),
        ("The answer is C.", None, None, "C", "C"),
        ("Well. The answer is C. No", None, None, None, "C"),
        ("E", None, None, None, None),  # four options
        ("", None, None, None, None),
        ("É", None, None, None, None),
    ],
)
def test_rules(answer, letter, seed, mmstar, scienceqa):
    rules = ("letter", "seed", "mmstar", "scienceqa")
    parsed = tuple(letters.parse_letter(answer, OPTIONS, rule) for rule in rules)
    assert parsed == (letter, seed, mmstar, scienceqa)


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("(A) or rather (C)", "C"),  # the last one
        ("(C) or rather (A)", "A"),
        ("(A) or (C)? No, (A)", "A"),
        ("A is wrong, so B it is", "B"),
        ("The answer is B.", "B"),
        ("It is B.\nBecause", "B"),
        ("It is A.\nNo: B.\nYes", "A"),  # dotted: neither " A " nor " B " occurs, the first stays
        ("I think that it must be a black cow", "C"),
        ("Not a dog but it might be a cat", "A"),  # texts too: the last one
        ("a black cow", None),  # five words or fewer: only letters count
        ("b", None),  # lower case is not a letter for MMMU
        ("", None),
        ("I do not know what this picture shows", None),
    ],
)
def test_mmmu_without_its_random_choice(answer, chosen):
    assert letters.parse_letter(answer, OPTIONS, "mmmu") == chosen


def test_mmmu_reads_any_word_that_ends_in_the_letter():
    """As published: "{letter} " is looked for anywhere, so the end of a word in capitals counts."""
    assert letters.parse_letter("USA is big", OPTIONS, "mmmu") == "A"


def test_other_letters():
    assert letters.parse_letter("Б", OPTIONS, "seed", "АБВГ") == "Б"
    with pytest.raises(ConfigError, match="4 options; 1 to 3 are allowed"):
        letters.parse_letter("Б", OPTIONS, "seed", "АБВ")


def test_rotations_and_circular_accuracy():
    assert letters.rotations(("cat", "dog", "cow")) == [
        ("cat", "dog", "cow"),
        ("dog", "cow", "cat"),
        ("cow", "cat", "dog"),
    ]
    right = {"1": [True, True, True], "2": [True, False, True], "3": [False, True], "4": [True]}
    assert letters.circular(right) == {"circular": 50, "vanilla": 75}


def test_refusals():
    with pytest.raises(ConfigError, match="rule 'sead' is not one of letter, seed"):
        letters.parse_letter("A", OPTIONS, "sead")
    with pytest.raises(ConfigError, match="0 options"):
        letters.parse_letter("A", ())
    with pytest.raises(ConfigError, match="question '7' has no answers"):
        letters.circular({"7": []})
    with pytest.raises(ConfigError, match="no questions"):
        letters.circular({})
