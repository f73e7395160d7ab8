"""Multiple choice by letter: what an answer chose, by the rule of each benchmark.

    rule       reads                                               source
    letter     "B", "(B)", "B.", "B) a cat" (ours)                 -
    seed       the first character                                 lmms-eval, seedbench; LLaVA-NDiNO
    mmstar     the first character, "(B", "Option B",              MMStar, exact_match
               "The answer is B"
    mmmu       "(B)", "B ", "B.", then an option's text; the last  MMMU, parse_multi_choice_response
    scienceqa  "B", "B. ...", "The answer is B"                    LLaVA, eval_science_qa.py

None is an unparseable answer: wrong, and counted. Where a published program draws a random option
instead (MMMU), ours does not.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from mllm_jax.common.errors import ConfigError, quoted, require

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MMMU_EDGES = (",", ".", "!", "?", ";", ":", "'")  # stripped one after another, as published
MMMU_LONG = 5  # words, above which an option's text is looked for
MMSTAR_LEADS = ("", "(", "option ", "the answer is ")
SCIENCEQA_LETTERS = "ABCDE"


def parse_letter(
    answer: str, options: Sequence[str], rule: str = "letter", letters: str = LETTERS
) -> str | None:
    """The letter that an answer chose, in upper case; None where the rule cannot tell.

    Args:
        answer: as the model wrote it.
        options: the texts of the options, in order.
        rule: by name, see the top of this file.
        letters: of the options, see `Language.letters`.

    Raises:
        ConfigError: an unknown rule, no options, or more options than letters.
    """
    require(
        0 < len(options) <= len(letters),
        f"multiple choice: {len(options)} options; 1 to {len(letters)} are allowed",
    )
    if rule not in RULES:
        raise ConfigError(f"multiple choice: rule {quoted(rule)} is not one of {', '.join(RULES)}")
    return RULES[rule](answer, options, letters[: len(options)])


def letter(answer: str, options: Sequence[str], letters: str) -> str | None:
    """Our rule: the letter alone, in brackets, or followed by a mark; else one option's text.

    "A cat" is not an answer A: a letter that is followed by a word needs a mark between them.
    """
    text = answer.strip()
    match = re.match(r"[(\[]?\s*(\w)\s*(?:[)\].:,;\n]|$)", text)
    if match and match[1].upper() in letters:
        return match[1].upper()
    chosen = [one for one, option in zip(letters, options, strict=True) if _same(option, text)]
    return chosen[0] if len(chosen) == 1 else None


def seed(answer: str, options: Sequence[str], letters: str) -> str | None:
    """SEED-Bench: the first character, in any case."""
    first = answer.strip()[:1].upper()
    return first if first and first in letters else None


def mmstar(answer: str, options: Sequence[str], letters: str) -> str | None:
    """MMStar: the first character, or the one behind "(", "option " or "the answer is "."""
    text = answer.lower().strip().replace("\n", " ")
    for lead in MMSTAR_LEADS:
        chosen = text[len(lead) : len(lead) + 1].upper()
        if text.startswith(lead) and chosen and chosen in letters:
            return chosen
    return None


def mmmu(answer: str, options: Sequence[str], letters: str) -> str | None:
    """MMMU: bracketed letters, bare ones, dotted ones, then texts; the last one that occurs.

    Unlike the published program, which draws a random option, an answer without any is None.
    """
    for mark in MMMU_EDGES:
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        chosen = [one for one in letters if form.format(one) in answer]
        if chosen:
            return _last(chosen, [answer.rfind(place.format(one)) for one in chosen])
    if len(answer.split()) > MMMU_LONG:
        lower = answer.lower()
        texts = {one: option.lower() for one, option in zip(letters, options, strict=True)}
        chosen = [one for one, option in texts.items() if option and option in lower]
        if chosen:
            return _last(chosen, [lower.rfind(texts[one]) for one in chosen])
    return None


def scienceqa(answer: str, options: Sequence[str], letters: str) -> str | None:
    """ScienceQA as LLaVA scores it: the letter alone, "B. ...", or behind "The answer is "."""
    text = answer.replace("\n", ". ")
    if text.strip() and text.strip() in [*SCIENCEQA_LETTERS]:
        chosen = text.strip()
    elif len(text) >= 3 and text[0] in SCIENCEQA_LETTERS and text[1:3] == ". ":
        chosen = text[0]
    else:
        dotted = re.search(r"The answer is ([A-E])\.", text)
        match = dotted or re.search(r"The answer is ([A-E])", text)
        chosen = match[1] if match else ""
    return chosen if chosen and chosen in letters else None


RULES: dict[str, Callable[[str, Sequence[str], str], str | None]] = {
    "letter": letter,
    "seed": seed,
    "mmstar": mmstar,
    "mmmu": mmmu,
    "scienceqa": scienceqa,
}


def rotations(options: Sequence[str]) -> list[tuple[str, ...]]:
    """MMBench's circular evaluation: the options as they are, and shifted by one, two, ... places.

    ("cat", "dog", "cow")  ->  cat dog cow, dog cow cat, cow cat dog
    """
    return [(*options[shift:], *options[:shift]) for shift in range(len(options))]


def circular(right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """MMBench's accuracies in percent, from whether each rotation of each question was right.

    Returns:
        "circular": right under all rotations; "vanilla": right in the first, as it was published.

    Raises:
        ConfigError: no questions, or one without answers.
    """
    require(len(right) > 0, "circular evaluation: no questions")
    for question, passes in right.items():
        require(len(passes) > 0, f"circular evaluation: question {quoted(question)} has no answers")
    return {
        "circular": 100 * sum(all(passes) for passes in right.values()) / len(right),
        "vanilla": 100 * sum(bool(passes[0]) for passes in right.values()) / len(right),
    }


def _last(chosen: Sequence[str], places: Sequence[int]) -> str:
    return chosen[places.index(max(places))]


def _same(option: str, text: str) -> bool:
    return option.strip().rstrip(".").casefold() == text.rstrip(".").casefold()
