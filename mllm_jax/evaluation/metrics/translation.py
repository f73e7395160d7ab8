"""Texts against one reference each: chrF2, chrF++ and BLEU by sacrebleu, with their signatures.

A signature says how a number was computed (tokeniser, smoothing, version); numbers with different
signatures must not be compared, so results keep it.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, require


class Translated(NamedTuple):
    """Scores from 0 to 100 by name, as sacrebleu prints them, and their signatures."""

    scores: dict[str, float]
    signatures: dict[str, str]


def translation_scores(answers: Sequence[str], references: Sequence[str]) -> Translated:
    """ "chrf" (chrF2), "chrf++" and "bleu" of a corpus.

    Raises:
        ConfigError: no texts, or sacrebleu is not installed.
    """
    require(len(answers) > 0, "chrF and BLEU: no texts to score")
    require(
        len(answers) == len(references),
        f"chrF and BLEU: {len(answers)} texts, {len(references)} references",
    )
    scores, signatures = {}, {}
    for name, metric in _metrics().items():
        scores[name] = metric.corpus_score(list(answers), [list(references)]).score
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
