"""Reading text in images: character and word error rates.

    truth "kaixo zer moduz zauden?", answer "Kaixo, zer moduz zaude?"
        CER  2 edits / 23 characters        WER  2 edits / 4 words

Both sides in NFC, lower case and with white space as single spaces. A corpus' rate is the sum of
edits over the sum of the truths' lengths, so it can exceed 100 %.

Source: HiTZ's ocr-eu task (hitz-zentroa, multimodal Latxa's evaluation).
"""

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from mllm_jax.common.errors import require


def normalise_ocr(text: str) -> str:
    """NFC, lower case, runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def character_edits(answer: str, truth: str) -> tuple[int, int]:
    """(edits that turn the answer into the truth, characters of the truth), both normalised."""
    answer, truth = normalise_ocr(answer), normalise_ocr(truth)
    return edit_distance(answer, truth), len(truth)


def word_edits(answer: str, truth: str) -> tuple[int, int]:
    """(edits that turn the answer into the truth, words of the truth), both normalised."""
    answers, truths = normalise_ocr(answer).split(), normalise_ocr(truth).split()
    return edit_distance(answers, truths), len(truths)


def error_rate(edits: Iterable[tuple[int, int]]) -> float:
    """Sum of edits over sum of lengths, in percent.

    Raises:
        ConfigError: the truths are all empty.
    """
    pairs = list(edits)
    length = sum(count for _, count in pairs)
    require(length > 0, "error rate: the truths hold no text")
    return 100 * sum(distance for distance, _ in pairs) / length


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions that turn one into the other.

    One column of the table at a time, as bits of two integers that say where it rises and falls.

    Source: Myers 1999, in the form of Hyyrö 2003; a page of 2,000 characters takes milliseconds.
    """
    if not first:
        return len(second)
    places: dict[Hashable, int] = defaultdict(int)
    for place, item in enumerate(first):
        places[item] |= 1 << place
    full, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = full, 0, len(first)
    for item in second:
        match = places.get(item, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        up = falls | (full & ~(diagonal | rises))
        down = rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up = (up << 1) | 1
        rises = full & ((down << 1) | ~(diagonal | up))
        falls = up & diagonal & full
    return distance
