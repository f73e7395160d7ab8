"""MMMU: college questions, some open, about up to seven images; see `letters` and `open_answers`.

Images come first, each once, in the order of their numbers; the text keeps its `<image 1>`.

    truth {"letter": "B", "options": [...]} or, of an open question, {"answers": ["1250", ...]}
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from mllm_jax.common.errors import require
from mllm_jax.evaluation.metrics import letters
from mllm_jax.evaluation.metrics.open_answers import open_match
from mllm_jax.evaluation.tasks.base import Line, TableTask, by_category, share, unparseable
from mllm_jax.evaluation.tasks.choices import WRITTEN, lettered
from mllm_jax.evaluation.tasks.data import Prompts
from mllm_jax.evaluation.tasks.rows import Row, Rows, literal
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question

MENTION = re.compile(r"<image (\d+)>")
OPEN = "open"  # in the column `kind`, of questions without options
_SUBJECT = re.compile(r"[a-z]+_(.+)_\d+")  # validation_Computer_Science_12


@dataclass(frozen=True, kw_only=True)
class Mmmu(TableTask):
    """Columns: id, question, options, answer, kind (of question), image_1 ... image_7."""

    open_prompt: Prompts = field(default_factory=dict)
    """Language -> text after open questions, in the place of post_prompt."""
    family: ClassVar[str] = "mmmu"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        question = row.text("question")
        if row.text("kind") == OPEN:
            value = row.text("answer")
            answers = literal(row, "answer", value) if value.startswith("[") else [value]
            truth = {"answers": [str(one) for one in answers]}
            after = self._prompt("open_prompt", rows.language)
            asked = f"{question.strip()}{after}"
        else:
            texts = row.texts("options")
            names = self.table(rows.language).letters[: len(texts)]
            letter = row.text("answer")
            if letter not in tuple(names):
                row.refuse("answer", letter, f"one of {', '.join(names)}")
            truth = {"letter": letter, "options": texts}
            lines = [f"\n{name}. {text}" for name, text in zip(names, texts, strict=True)]
            asked = self.wording(rows.language, question.strip() + "".join(lines))
        yield self._with_images(rows, row, split, truth, asked)

    def _with_images(self, rows: Rows, row: Row, split: str, truth: object, asked: str) -> Question:
        numbers = sorted({int(number) for number in MENTION.findall(asked)})
        names = tuple(f"image_{number}" for number in numbers)
        for name in names:
            require(row.has(name), f"{row.location}: the text mentions {name}, which is empty")
        key = self.key(row, split)
        match = _SUBJECT.fullmatch(key)
        category = row.optional("category") or (match[1] if match else "")
        return self.make(
            rows, row, split, truth, asked, id=key, category=category, image_names=names
        )

    def published(self, question: Question) -> Question:
        """With options in its text, or else an open question."""
        truth = question.truth
        if isinstance(truth, dict):
            return question  # of the task's rows
        if WRITTEN.search(question.text):
            return lettered(question)
        answers = truth if isinstance(truth, list) else [str(truth)]
        return question._replace(truth={"answers": answers})

    def judge(self, question: Question, answer: Answer) -> Judged:
        truth = question.truth
        if "answers" in truth:
            right = open_match(answer.text, truth["answers"])
            return Judged(answer.text or None, float(right), {})
        names = self.table(question.language).letters
        parsed = letters.parse_letter(answer.text, truth["options"], "mmmu", names)
        return Judged(parsed, float(parsed == truth["letter"]), {})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        scores = {"accuracy": share([line["correct"] for line in lines])}
        scores["unparseable"] = unparseable(lines)
        for category, part in by_category(lines).items():
            scores[f"accuracy_{category or 'other'}"] = share([line["correct"] for line in part])
        return scores
