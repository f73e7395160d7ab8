"""MMMU's open questions: a truth somewhere in the answer's key phrases, or among its numbers.

    "So the total is 1,250.0"   ->  "1,250.0" behind "is ", and 1250.0   ->  right for "1250"

The phrases are introduced by English words; without one the whole line counts, so an answer in
another language is searched as it is. An answer is right if a text among the truths is part of a
phrase, or a number among them equals one of its numbers after rounding to two places.

Source: MMMU, parse_open_response and eval_open (eval/eval_utils.py).
"""

import itertools
import re
from collections.abc import Iterable, Sequence

LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
MARKS = frozenset(":,.!?;'")  # a phrase that is one of these says nothing
NUMBERS = (  # with thousands; in scientific notation; simple
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def open_match(answer: str, truths: Sequence[str]) -> bool:
    """Whether an answer to an open question is right.

    Args:
        answer: as the model wrote it; an empty one is never right.
        truths: the accepted answers.
    """
    texts, numbers = _forms(truths)
    phrases = _phrases(answer)
    figures = (re.findall(form, phrase) for phrase in phrases for form in NUMBERS)
    answered, values = _forms([*phrases, *itertools.chain.from_iterable(figures)])
    return bool(numbers & values) or any(text in one for text in texts for one in answered)


def _phrases(answer: str) -> list[str]:
    """The shortest tail behind a leading word in each line; the whole answer without any."""
    answer = answer.strip().strip(".").lower()
    lines = answer.split("\n")
    phrases = []
    for place, line in enumerate(lines):
        leads = (*LEADS, "=") if place == len(lines) - 1 else LEADS
        tails = [line.split(lead)[-1].strip() for lead in leads if lead in line]
        shortest = ""
        for tail in tails:  # as published: an empty tail gives way to the next one
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in MARKS:
            phrases.append(shortest)
    return phrases or [answer]


def _forms(texts: Iterable[str]) -> tuple[set[str], set[float]]:
    """Texts in lower case, a single letter beside a space; numbers rounded to two places."""
    words, numbers = set[str](), set[float]()
    for text in map(str.strip, texts):
        try:
            numbers.add(round(float(text.replace(",", "")), 2))
        except ValueError:
            lower = text.lower()
            words |= {f" {lower}", f"{lower} "} if len(lower) == 1 else {lower}
    return words, numbers
