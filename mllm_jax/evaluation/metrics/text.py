"""Compares two texts: exact match after our normalisation, and as LLaVA-NDiNO computes it."""

import string
import unicodedata

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """What counts when answers are compared: not case, final punctuation, width of white space.

        " Hirurogeita  hamazazpi. "  ->  "hirurogeita hamazazpi"

    An answer of punctuation alone stays as it is.
    """
    text = " ".join(
        unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split()
    )
    end = len(text)
    while end and (text[end - 1].isspace() or unicodedata.category(text[end - 1]).startswith("P")):
        end -= 1
    return text[:end] or text


def exact_match(answer: str, truth: str) -> bool:
    """Whether two texts are the same after `normalise`: `exact_match` in results."""
    return normalise(answer) == normalise(truth)


def normalise_ndino(text: str) -> str:
    """Lower case, without any of ASCII's punctuation marks, wherever they are; else as it is.

        "L'uomo."  ->  "luomo"        "T-shirt"  ->  "tshirt"

    Source: exact_match of Hugging Face's evaluate with ignore_case and ignore_punctuation, which
    lmms-eval and LLaVA-NDiNO's tasks use.
    """
    return text.lower().translate(_NO_PUNCTUATION)


def exact_match_ndino(answer: str, truth: str) -> bool:
    """Whether two texts are the same after `normalise_ndino`: `exact_match_ndino` in results."""
    return normalise_ndino(answer) == normalise_ndino(truth)
