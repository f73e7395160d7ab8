"""Perplexity on true answers, LLaVA-NDiNO's way and others; see `metrics.perplexity`.

The truth is the one option of a question; its log-likelihood includes the token that ends a turn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mllm_jax.common.errors import require
from mllm_jax.evaluation.metrics.perplexity import perplexities
from mllm_jax.evaluation.tasks.base import Line, TableTask
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Kind, Question


@dataclass(frozen=True, kw_only=True)
class Perplexity(TableTask):
    """Columns: id, question, image, answer."""

    family: ClassVar[str] = "perplexity"
    kind: ClassVar[Kind] = "perplexity"
    end_of_turn: ClassVar[bool] = True
    headline: ClassVar[str] = "perplexity"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        truth = row.text("answer")
        require(truth.strip() != "", f"{row.location}: the answer is empty")
        asked = self.wording(rows.language, self.asked(row, rows.language))
        yield self.make(rows, row, split, truth, asked, options=(truth,))

    def judge(self, question: Question, answer: Answer) -> Judged:
        """`correct` is the mean probability of a token (geometric), which is 1 / perplexity."""
        numbers = loss_of(question, answer)
        return Judged(None, math.exp(-numbers["loss"]), numbers)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        return losses(lines)

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Six digits; the number of dropped answers is whole."""
        return {name: f"{value:.6g}" for name, value in metrics.items()}


def loss_of(question: Question, answer: Answer) -> dict[str, float]:
    """{"loss", "tokens"}: the mean over the tokens of the truth, in nats, and their number.

    Raises:
        ConfigError: they were not measured.
    """
    require(
        len(answer.log_likelihoods) == len(answer.tokens) == 1 and answer.tokens[0] > 0,
        f"question {question.id}: no log-likelihood and token count of the truth are stored",
    )
    return {
        "loss": -answer.log_likelihoods[0] / answer.tokens[0],
        "tokens": float(answer.tokens[0]),
    }


def losses(lines: Sequence[Line]) -> dict[str, float]:
    """Perplexity three ways, and the number of tokens it is over, of lines that have a loss."""
    means = [line["numbers"]["loss"] for line in lines]
    counts = [int(line["numbers"]["tokens"]) for line in lines]
    return {**perplexities(means, counts), "answer_tokens": float(sum(counts))}
