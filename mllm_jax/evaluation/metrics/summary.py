"""Answers -> scores per language: exact match, loss and perplexity on answer tokens, as a table."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mllm_jax.common.markdown import markdown_table
from mllm_jax.evaluation.metrics.perplexity import mean_perplexity, token_weighted

# of the truth: all None where it is not measured
LOSSES = ("loss", "perplexity", "answer_perplexity", "answers_left_out", "answer_tokens")
Scores = dict[str, dict[str, Any]]  # language -> name -> number, or None: not measured
COLUMNS = (
    "language",
    "answers",
    "exact match",
    "loss",
    "perplexity",
    "answer tokens",
    "unfinished",
)


def score(answers: Sequence[dict[str, Any]], languages: Iterable[str]) -> Scores:
    """Scores of each language, from the lines of answers.jsonl.

    Loss is weighted by token: the sum over all answer tokens over their number, in nats;
    perplexity is its exponential. answer_perplexity is LLaVA-NDiNO's, see `mean_perplexity`.

    Args:
        answers: with language, correct, loss (mean over the truth's tokens), tokens (their number),
            finished. Loss and tokens of all are None where the chat template ends no answer.
        languages: those to report, in order; each has an answer.

    Raises:
        ConfigError: a loss is not a number, or so large that no trained model gives it.
    """
    scores = {}
    for language in languages:
        group = [answer for answer in answers if answer["language"] == language]
        scores[language] = {
            "count": len(group),
            "exact_match": sum(answer["correct"] for answer in group) / len(group),
            **_losses(group, language),
            "unfinished": sum(not answer["finished"] for answer in group),
        }
    return scores


def _losses(answers: Sequence[dict[str, Any]], language: str) -> dict[str, int | float | None]:
    if any(answer["loss"] is None for answer in answers):
        return dict.fromkeys(LOSSES)
    tokens = sum(answer["tokens"] for answer in answers)
    losses = [answer["loss"] for answer in answers]
    loss = token_weighted(losses, [answer["tokens"] for answer in answers], repr(language))
    mean, left_out = mean_perplexity(losses)
    values = (loss, math.exp(loss), mean, left_out, tokens)
    return dict(zip(LOSSES, values, strict=True))


def table(scores: Scores) -> str:
    """The scores as Markdown, columns aligned so that it also reads well on a terminal.

    "-" stands for what was not measured.
    """
    rows = [
        (
            language,
            str(of["count"]),
            f"{100 * of['exact_match']:.1f} %",
            _cell(of["loss"], ".4f"),
            _cell(of["perplexity"], ".4g"),
            _cell(of["answer_tokens"], "d"),
            str(of["unfinished"]),
        )
        for language, of in scores.items()
    ]
    return markdown_table(COLUMNS, rows)


def _cell(value: int | float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
