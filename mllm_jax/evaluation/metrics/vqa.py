"""VQA soft accuracy: an answer against those of about ten annotators, after a normalisation.

    ten annotators, four of whom said "red":   "red" -> 1.0
    ten annotators, three of whom said "red":  "red" -> 0.9: left out one at a time, three of the
                                               ten see only two others

Three normalisations exist; they differ in what they do to the annotators' answers:

    official   GT-Vision-Lab/VQA, vqaEval.py: the answer in full; truths by punctuation alone, and
               only where the annotators disagree
    evalai     lmms-eval's OK-VQA and LLaVA-NDiNO: EvalAIAnswerProcessor on both sides
    lmms-eval  lmms-eval's VQAv2: the answer by EvalAIAnswerProcessor; where the annotators disagree
               both sides by punctuation and words

The published programs know English alone. Here articles, number words and contractions are those of
a `Language`; with English's table every value is the published one.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.evaluation.languages import Language

NEEDED = 3  # annotators who say the same make an answer right
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA = re.compile(r"\d,\d")
# published as (?!<=\d)(\.)(?!\d), whose first group never fails; and re.UNICODE, 32, is given where
# the number of replacements belongs
PERIOD, PERIODS = re.compile(r"\.(?!\d)"), 32


def soft_accuracy(
    answer: str, truths: Sequence[str], language: Language, variant: str = "official"
) -> float:
    """VQA accuracy of one answer, a fraction.

    Args:
        answer: as the model wrote it.
        truths: one answer per annotator, as published.
        language: whose articles, number words and contractions count.
        variant: a normalisation by name, see the top of this file.

    Raises:
        ConfigError: fewer than two truths, an unknown variant, or a language that does not state
            its words.
    """
    require(
        len(truths) > 1,
        f"VQA accuracy compares an answer with those of several annotators, got {len(truths)}; "
        "with one true answer use rule: exact_match",
    )
    if variant not in VARIANTS:
        raise ConfigError(
            f"VQA accuracy: variant {quoted(variant)} is not one of {', '.join(VARIANTS)}"
        )
    return leave_one_out(*VARIANTS[variant](answer, truths, language))


def leave_one_out(answer: str, truths: Sequence[str]) -> float:
    """Mean over annotators of min(1, how many of the OTHERS gave this answer / 3); texts as is."""
    same, count = truths.count(answer), len(truths)
    theirs = same * min(1.0, (same - 1) / NEEDED)  # those who gave it see one match fewer
    return (theirs + (count - same) * min(1.0, same / NEEDED)) / count


def direct_answer(answer: str, truths: Sequence[str]) -> float:
    """A-OKVQA's direct answers: min(1, matches / 3) over all annotators, texts as they are.

    Source: allenai/aokvqa, evaluation/eval_predictions.py.
    """
    return min(1.0, sum(answer == truth for truth in truths) / NEEDED)


def multiple_choice(answer: str, correct: str) -> bool:
    """A-OKVQA's multiple choice: the text of the correct option, letter by letter.

    Questions marked `difficult_direct_answer` are left out before. Source: as `direct_answer`.
    """
    return answer == correct


def normalise_official(text: str, language: Language) -> str:
    """An answer as vqaEval.py compares it: white space, punctuation, words."""
    return _words(_punctuation(_flat(text)), language)


def normalise_evalai(text: str, language: Language) -> str:
    """An answer as EvalAIAnswerProcessor compares it: lower case, `'s` as a word of its own."""
    text = unicodedata.normalize("NFC", text).lower()
    text = text.replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(_flat(text)), language)


def _official(answer: str, truths: Sequence[str], language: Language) -> tuple[str, list[str]]:
    truths = [unicodedata.normalize("NFC", truth) for truth in truths]
    if len(set(truths)) > 1:
        truths = [_punctuation(truth) for truth in truths]
    return normalise_official(answer, language), list(truths)


def _evalai(answer: str, truths: Sequence[str], language: Language) -> tuple[str, list[str]]:
    return normalise_evalai(answer, language), [normalise_evalai(t, language) for t in truths]


def _lmms_eval(answer: str, truths: Sequence[str], language: Language) -> tuple[str, list[str]]:
    answer, truths = normalise_evalai(answer, language), [_flat(truth) for truth in truths]
    if len(set(truths)) > 1:
        answer = _words(_punctuation(answer), language)
        truths = [_words(_punctuation(truth), language) for truth in truths]
    return answer, list(truths)


VARIANTS: dict[str, Callable[[str, Sequence[str], Language], tuple[str, list[str]]]] = {
    "official": _official,
    "evalai": _evalai,
    "lmms-eval": _lmms_eval,
}


def _flat(text: str) -> str:
    """One line, in composed letters: "sì" is the same however its accent is stored."""
    return unicodedata.normalize("NFC", text).replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    """Without punctuation: a mark at a word's end vanishes, one inside a word becomes a space."""
    clean, thousands = text, COMMA.search(text) is not None
    for mark in PUNCTUATION:
        outside = f"{mark} " in text or f" {mark}" in text
        clean = clean.replace(mark, "" if outside or thousands else " ")
    return PERIOD.sub("", clean, count=PERIODS)


def _words(text: str, language: Language) -> str:
    """Lower case, number words as digits, without articles, contractions with their apostrophe."""
    articles, numbers = language.need("articles"), language.need("numbers")
    contractions = language.need("contractions")
    clean, parts = [], text.lower().split()
    for part in parts:
        word = _without_elision(part, articles)
        if word in numbers and (len(parts) == 1 or word not in articles):
            word = numbers[word]
        if word not in articles:
            clean.append(contractions.get(word, word))
    return " ".join(clean)


def _without_elision(word: str, articles: Sequence[str]) -> str:
    """ "l'uomo" -> "uomo", where "l'" is an article."""
    for article in articles:
        if article.endswith("'") and word.replace("’", "'").startswith(article):
            return word[len(article) :] or word
    return word
