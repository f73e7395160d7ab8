"""Answers -> scores per language: exact match, loss and perplexity on answer tokens, as a table."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from mllm_jax.errors import require
from mllm_jax.markdown import markdown_table

Scores = dict[str, dict[str, int | float]]  # language -> name -> value
COLUMNS = (
    "language",
    "answers",
    "exact match",
    "loss",
    "perplexity",
    "answer tokens",
    "unfinished",
)


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
    """Whether two texts are the same after `normalise`."""
    return normalise(answer) == normalise(truth)


def score(answers: Sequence[dict[str, Any]], languages: Iterable[str]) -> Scores:
    """Scores of each language, from the lines of answers.jsonl.

    Loss is weighted by token: the sum over all answer tokens over their number, in nats;
    perplexity is its exponential.

    Args:
        answers: with language, correct, loss (mean over the truth's tokens), tokens (their number),
            finished.
        languages: those to report, in order; each has an answer.

    Raises:
        ConfigError: a loss is not a number, or so large that no trained model gives it.
    """
    scores = {}
    for language in languages:
        own = [answer for answer in answers if answer["language"] == language]
        tokens = sum(answer["tokens"] for answer in own)
        loss = sum(answer["loss"] * answer["tokens"] for answer in own) / tokens
        # exp(700) is the end of float64; a chance guess over a million words costs 14 nats
        require(
            loss < 700,
            f"the loss on {language!r} is {loss} per token: the model's weights are broken",
        )
        scores[language] = {
            "count": len(own),
            "exact_match": sum(answer["correct"] for answer in own) / len(own),
            "loss": loss,
            "perplexity": math.exp(loss),
            "answer_tokens": tokens,
            "unfinished": sum(not answer["finished"] for answer in own),
        }
    return scores


def table(scores: Scores) -> str:
    """The scores as Markdown, columns aligned so that it also reads well on a terminal."""
    rows = [
        (
            language,
            str(own["count"]),
            f"{100 * own['exact_match']:.1f} %",
            f"{own['loss']:.4f}",
            f"{own['perplexity']:.4g}",
            str(own["answer_tokens"]),
            str(own["unfinished"]),
        )
        for language, own in scores.items()
    ]
    return markdown_table(COLUMNS, rows)
