"""Captions against several references: BLEU-1 to 4, ROUGE-L and CIDEr, as nlg-eval computes them.

Tokens are what white space separates; nothing is lowered, and punctuation stays at its word.
Numbers are on nlg-eval's scale: 0.55 is what papers print as 55. METEOR is left out: the published
one is a Java program with English stems and synonyms, and no other is the same number.

Source: Maluuba/nlg-eval, pycocoevalcap (bleu_scorer.py, rouge.py, cider_scorer.py).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mllm_jax.common.errors import require

ORDERS = 4  # n-grams of 1 to 4 words
TINY, SMALL = 1e-15, 1e-9  # of the published BLEU: a product without matches is not 0
BETA = 1.2  # weight of recall in ROUGE-L
SIGMA = 6.0  # of CIDEr's penalty on differences of length, in words
Ngrams = Counter[tuple[str, ...]]


def caption_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Bleu_1, Bleu_2, Bleu_3, Bleu_4, ROUGE_L and CIDEr of a set of captions.

    Args:
        answers: one caption per image.
        references: of each image, one or more.

    Raises:
        ConfigError: no captions, or an image without references.
    """
    require(len(answers) > 0, "captions: none to score")
    for image, texts in enumerate(references):
        require(len(texts) > 0, f"captions: image {image} has no references")
    scores = {f"Bleu_{n}": value for n, value in enumerate(bleu(answers, references), start=1)}
    rouge = [rouge_l(*pair) for pair in zip(answers, references, strict=True)]
    return scores | {
        "ROUGE_L": sum(rouge) / len(rouge),
        "CIDEr": sum(cider(answers, references)) / len(answers),
    }


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus; of several references the one closest in length counts."""
    lengths, matched, total = [0, 0], [0] * ORDERS, [0] * ORDERS
    for answer, texts in zip(answers, references, strict=True):
        size = len(answer.split())
        closest = min((abs(len(text.split()) - size), len(text.split())) for text in texts)[1]
        lengths = [lengths[0] + size, lengths[1] + closest]
        most = Ngrams()
        for text in texts:
            most |= _ngrams(text)
        for ngram, number in (_ngrams(answer) & most).items():
            matched[len(ngram) - 1] += number
        for n in range(ORDERS):
            total[n] += max(0, size - n)
    ratio = (lengths[0] + TINY) / (lengths[1] + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (matched[n] + TINY) / (total[n] + SMALL)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F of the longest common subsequence of words; best precision and recall of any reference."""
    words = answer.strip().split(" ")
    precision = recall = 0.0
    for text in references:
        others = text.strip().split(" ")
        common = _common(words, others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption; n-grams weigh by how few of THESE images' references hold them.

    So the number of an image depends on the others, and is 0 where there is only one.
    """
    counts = [[_ngrams(text) for text in texts] for texts in references]
    images = Counter(ngram for texts in counts for ngram in set().union(*texts))
    log_images = math.log(len(answers))
    scores = []
    for answer, texts in zip(answers, counts, strict=True):
        ours = _weigh(_ngrams(answer), images, log_images)
        theirs = [_weigh(text, images, log_images) for text in texts]
        similar = sum(_similarity(ours, other) for other in theirs)
        scores.append(10 * similar / ORDERS / len(texts))
    return scores


class _Weighted(NamedTuple):
    weights: list[dict[tuple[str, ...], float]]  # of 1-grams, 2-grams, ...
    norms: list[float]
    length: int  # as published: the number of 2-grams


def _weigh(ngrams: Ngrams, images: Counter[tuple[str, ...]], log_images: float) -> _Weighted:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
    for ngram, number in ngrams.items():
        rarity = log_images - math.log(max(1, images[ngram]))
        weights[len(ngram) - 1][ngram] = number * rarity
    norms = [math.sqrt(sum(value**2 for value in of.values())) for of in weights]
    return _Weighted(weights, norms, sum(n for ngram, n in ngrams.items() if len(ngram) == 2))


def _similarity(ours: _Weighted, theirs: _Weighted) -> float:
    """Sum over the orders of the clipped cosine, less for a difference in length."""
    total = 0.0
    for mine, other, norm, their_norm in zip(
        ours.weights, theirs.weights, ours.norms, theirs.norms, strict=True
    ):
        dot = sum(
            min(value, other[ngram]) * other[ngram]
            for ngram, value in mine.items()
            if ngram in other
        )
        if dot:  # an n-gram that all images' references hold weighs nothing
            total += dot / (norm * their_norm)
    return total * math.exp(-((ours.length - theirs.length) ** 2) / (2 * SIGMA**2))


def _ngrams(text: str) -> Ngrams:
    words = text.split()
    return Ngrams(
        tuple(words[start : start + n])
        for n in range(1, ORDERS + 1)
        for start in range(len(words) - n + 1)
    )


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
