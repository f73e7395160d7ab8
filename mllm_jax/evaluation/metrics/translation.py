"""Texts against references: chrF2, chrF++ and BLEU by sacrebleu, with their signatures.

A signature says how a number was computed (tokeniser, smoothing, version); numbers with different
signatures must not be compared, so results keep it.
"""

import importlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, require


class Translated(NamedTuple):
    """Scores from 0 to 100 by name, as sacrebleu prints them, and their signatures."""

    scores: dict[str, float]
    signatures: dict[str, str]


def translation_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Translated:
    """The numbers chrf (chrF2), chrf++ and bleu of a corpus.

    Args:
        answers: one text each.
        references: of each text, one or more; sacrebleu takes the best one (chrF) or all (BLEU).

    Raises:
        ConfigError: no texts, one without references, or sacrebleu is not installed.
    """
    require(len(answers) > 0, "chrF and BLEU: no texts to score")
    count = sum(map(bool, references))
    require(
        len(answers) == len(references) == count,
        f"chrF and BLEU: {len(answers)} texts, {count} of them with references",
    )
    streams = list(map(list, itertools.zip_longest(*references)))  # None where a text has fewer
    scores, signatures = {}, {}
    for name, metric in _metrics().items():
        scores[name] = metric.corpus_score(list(answers), streams).score
        signatures[name] = str(metric.get_signature())
    return Translated(scores, signatures)


def sentence_scores(answer: str, reference: str) -> dict[str, float]:
    """The same of one text, 0 to 100; BLEU of the orders that so short a text can have.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    metrics = _metrics(effective_order=True)
    return {
        name: metric.sentence_score(answer, [reference]).score for name, metric in metrics.items()
    }


def _metrics(effective_order: bool = False) -> dict[str, Any]:
    try:
        library: Any = importlib.import_module("sacrebleu.metrics")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "chrF and BLEU need sacrebleu: pip install 'mllm-jax[evaluation]'"
        ) from error
    return {
        "chrf": library.CHRF(),
        "chrf++": library.CHRF(word_order=2),
        "bleu": library.BLEU(effective_order=effective_order),
    }
