"""Answer-language fidelity of answers that are too short for a language identifier.

    true answers   eu: bederatzi, laurogeita hamar    en: nine, ninety
    "bederatzi"  ->  eu     "ninety bederatzi"  ->  None, words of both     "xx"  ->  None

Where answers come from a small vocabulary, as numbers do, their words tell the language. Words
that the true answers of several languages have in common say nothing.
"""

import re
from collections.abc import Mapping, Sequence

from mllm_jax.evaluation.metrics.fidelity import shares
from mllm_jax.evaluation.metrics.text import normalise


def own_words(truths: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Language -> the words of its true answers that no other language's have."""
    words = {
        language: {word for text in texts for word in _words(text)}
        for language, texts in truths.items()
    }
    return {
        language: own.difference(*(of for other, of in words.items() if other != language))
        for language, own in words.items()
    }


def identify_by_words(texts: Sequence[str], words: Mapping[str, set[str]]) -> list[str | None]:
    """The language of each text, of which it has words and of no other one; None is undecided.

    Args:
        texts: answers.
        words: from `own_words`.
    """
    identified: list[str | None] = []
    for text in texts:
        languages = [language for language, of in words.items() if _words(text) & of]
        identified.append(languages[0] if len(languages) == 1 else None)
    return identified


def word_fidelity(
    answers: Sequence[str], language: str, words: Mapping[str, set[str]]
) -> dict[str, float]:
    """Percentages: `word_fidelity` of the decided answers (absent if none is), `word_undecided`.

    Args:
        answers: a model's, to questions in `language`.
        language: code of the language asked for.
        words: from `own_words`.

    Raises:
        ConfigError: no answers.
    """
    numbers = shares(identify_by_words(answers, words), language)
    names = (("word_fidelity", "right"), ("word_undecided", "undecided"))
    return {name: numbers[key] for name, key in names if key in numbers}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", normalise(text)))
