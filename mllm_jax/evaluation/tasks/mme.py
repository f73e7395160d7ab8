"""MME: two yes/no questions about each image, see `metrics.mme`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics import mme, yes_no
from mllm_jax.evaluation.tasks.base import Line, TableTask, one_text, unparseable
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question


@dataclass(frozen=True, kw_only=True)
class Mme(TableTask):
    """Columns: id (of the image), question, image, answer, category."""

    family: ClassVar[str] = "mme"
    headline: ClassVar[str] = "perception"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        label, category = row.text("answer"), row.text("category")
        try:
            truth = yes_no.truth_of(label, self.table(rows.language))
        except ConfigError as error:
            raise ConfigError(f"{row.location}: {error}") from error
        image = self.key(row, split)
        group = image if image.startswith(f"{category}/") else f"{category}/{image}"
        asked = self.wording(rows.language, row.text("question"))
        yield self.make(rows, row, split, truth, asked, id=f"{group}/{row.number}", group=group)

    def published(self, question: Question) -> Question:
        """A question of a published file of labels."""
        table = self.table(question.language)
        return question._replace(truth=yes_no.truth_of(str(one_text(question.truth)), table))

    def judge(self, question: Question, answer: Answer) -> Judged:
        parsed = yes_no.mme(answer.text, self.table(question.language))
        return Judged(parsed, float(parsed == question.truth), {})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        answers = [(line["category"], line["group"], line["correct"] == 1) for line in lines]
        return {**mme.mme(answers), "unparseable": unparseable(lines)}

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """The sums with one decimal, as papers print them."""
        sums = {name: f"{metrics[name]:.1f}" for name in ("perception", "cognition")}
        return {**super().printed(metrics), **sums}
