"""Texts that are read from images: character and word error rates, see `metrics.ocr`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mllm_jax.common.errors import require
from mllm_jax.evaluation.metrics import ocr
from mllm_jax.evaluation.tasks.base import Line, TableTask, unparseable
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question


@dataclass(frozen=True, kw_only=True)
class Ocr(TableTask):
    """Columns: id, image, text."""

    family: ClassVar[str] = "ocr"
    headline: ClassVar[str] = "cer"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        truth = row.text("text")
        require(truth.strip() != "", f"{row.location}: the text of the image is empty")
        asked = self.wording(rows.language, self.asked(row, rows.language))
        yield self.make(rows, row, split, truth, asked)

    def judge(self, question: Question, answer: Answer) -> Judged:
        edits, characters = ocr.character_edits(answer.text, question.truth)
        word_edits, words = ocr.word_edits(answer.text, question.truth)
        numbers = {
            "character_edits": edits,
            "characters": characters,
            "word_edits": word_edits,
            "words": words,
        }
        correct = max(0.0, 1 - edits / max(characters, 1))
        return Judged(answer.text or None, correct, {k: float(v) for k, v in numbers.items()})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        """Of the corpus, and the means over answers that mLatxa's program prints."""
        scores = {}
        for name, edits, length in (
            ("cer", "character_edits", "characters"),
            ("wer", "word_edits", "words"),
        ):
            numbers = [line["numbers"] for line in lines]
            scores[name] = ocr.error_rate((int(one[edits]), int(one[length])) for one in numbers)
            rates = [one[edits] / max(one[length], 1) for one in numbers]
            scores[f"{name}_mean"] = 100 * sum(rates) / len(rates)
        return {**scores, "unparseable": unparseable(lines)}
