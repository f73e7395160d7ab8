"""Captions against several references, XM3600 style; see `metrics.captions`.

Scored answers are those of nlg-eval: white space separates words. `plain_words` makes words of
captions that are written as sentences: lower case, without punctuation, as COCO's tokenizer does.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mllm_jax.common.errors import require
from mllm_jax.evaluation.metrics import captions
from mllm_jax.evaluation.tasks.base import Line, TableTask, unparseable
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question


@dataclass(frozen=True, kw_only=True)
class Captions(TableTask):
    """Columns: id, image, captions (a list, or one text)."""

    plain_words: bool = False
    """Whether captions are compared in lower case and without punctuation."""
    family: ClassVar[str] = "captions"
    headline: ClassVar[str] = "CIDEr"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        value = row.value("captions")
        references = [value] if isinstance(value, str) else row.texts("captions")
        require(len(references) > 0, f"{row.location}: no captions of people")
        asked = self.wording(rows.language, self.asked(row, rows.language))
        yield self.make(rows, row, split, references, asked)

    def published(self, question: Question) -> Question:
        """A text is the only reference. Raises ConfigError where there is none."""
        truth = [question.truth] if isinstance(question.truth, str) else question.truth
        require(isinstance(truth, list) and len(truth) > 0, "no captions of people")
        return question._replace(truth=truth)

    def judge(self, question: Question, answer: Answer) -> Judged:
        text, references = self._words(answer.text), [self._words(one) for one in question.truth]
        rouge = captions.rouge_l(text, references)
        return Judged(text or None, rouge, {"ROUGE_L": rouge})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        answers = [self._words(line["answer"]) for line in lines]
        references = [[self._words(one) for one in line["truth"]] for line in lines]
        scores = captions.caption_scores(answers, references)
        return {**scores, "unparseable": unparseable(lines)}

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """As nlg-eval prints them: fractions of six decimals."""
        return {name: f"{value:.6f}" for name, value in metrics.items()} | {
            "unparseable": f"{metrics['unparseable']:.2f}"
        }

    def _words(self, text: str) -> str:
        if not self.plain_words:
            return text
        text = unicodedata.normalize("NFC", text).lower()
        words = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
        return " ".join(words.split())
