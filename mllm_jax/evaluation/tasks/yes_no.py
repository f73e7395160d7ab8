"""Yes/no questions about an image: POPE, by its own rule or a harness's, see `metrics.yes_no`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics import yes_no
from mllm_jax.evaluation.tasks.base import Line, TableTask, by_category, one_text
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question


@dataclass(frozen=True, kw_only=True)
class YesNo(TableTask):
    """Columns: id, question, image, answer; category, whose questions have ids of their own."""

    rule: Literal["official", "lmms-eval", "ndino", "strict"] = "official"
    """How an answer is read."""
    family: ClassVar[str] = "yes_no"
    headline: ClassVar[str] = "f1"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        label = row.text("answer")
        try:
            truth = yes_no.truth_of(label, self.table(rows.language))
        except ConfigError as error:
            raise ConfigError(f"{row.location}: {error}") from error
        asked = self.wording(rows.language, self.asked(row, rows.language))
        category = "" if split else row.optional("category")
        yield self.make(rows, row, split, truth, asked, id=self.key(row, split or category))

    def published(self, question: Question) -> Question:
        """A question of a published file of labels."""
        table = self.table(question.language)
        truth = yes_no.truth_of(str(one_text(question.truth)), table)
        return question._replace(truth=truth)

    def judge(self, question: Question, answer: Answer) -> Judged:
        table = self.table(question.language)
        counted = yes_no.parse_yes_no(answer.text, table, self.rule)
        lost = yes_no.unparseable(answer.text, table, self.rule)
        return Judged(None if lost else counted, float(counted == question.truth), {})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        scores = self._scores(lines)
        parts = by_category(lines)
        values = {category: self._scores(part) for category, part in parts.items()}
        if values:  # LLaVA-1.5's table
            scores["f1_mean"] = sum(part["f1"] for part in values.values()) / len(values)
        for category, part in values.items():
            scores |= {f"{name}_{category or 'other'}": number for name, number in part.items()}
        return scores

    def _scores(self, lines: Sequence[Line]) -> dict[str, float]:
        table = self.table(lines[0]["language"])
        truths, answers = [line["truth"] for line in lines], [line["answer"] for line in lines]
        return yes_no.pope(truths, answers, table, self.rule)
