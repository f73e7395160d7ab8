"""Short free answers: VQAv2, OK-VQA, GQA, MTVQA, EXAMS-V, A-OKVQA's direct answers.

rule               an answer is right when it is                               truth
exact_match        the truth, as we normalise texts                            text or texts
exact_match_ndino  the truth without case and punctuation (lmms-eval, NDiNO)   text or texts
official evalai    that of three annotators, left out one at a time; see       ten texts
lmms-eval          `metrics.vqa`
direct_answer      that of three annotators, letter by letter (A-OKVQA)        ten texts
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from mllm_jax.common.errors import require
from mllm_jax.evaluation.metrics import text, vqa
from mllm_jax.evaluation.tasks.base import Line, TableTask, by_category, share, unparseable
from mllm_jax.evaluation.tasks.rows import Row, Rows, literal
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question

EXACT = {"exact_match": text.exact_match, "exact_match_ndino": text.exact_match_ndino}
Rule = Literal[
    "exact_match", "exact_match_ndino", "official", "evalai", "lmms-eval", "direct_answer"
]


@dataclass(frozen=True, kw_only=True)
class ShortAnswer(TableTask):
    """Columns: id, question, image, answer (or answers); pairs, of several questions in a row."""

    rule: Rule = "exact_match"
    """How answers are compared."""
    family: ClassVar[str] = "short_answer"

    @property
    def headline(self) -> str:  # type: ignore[override]
        return self.rule if self.rule in EXACT else "accuracy"

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        if "pairs" not in self.columns:
            asked = self.wording(rows.language, self.asked(row, rows.language))
            yield self.make(rows, row, split, self._truth(row), asked)
            return
        for number, pair in enumerate(_pairs(row)):
            asked = self.wording(rows.language, pair["question"])
            key = f"{self.key(row, split)}/{number}"
            yield self.make(rows, row, split, pair["answer"], asked, id=key)

    def _truth(self, row: Row) -> str | list[str]:
        if "answers" not in self.columns:
            return row.text("answer")
        answers = row.value("answers")
        if isinstance(answers, list) and all(isinstance(item, dict) for item in answers):
            answers = [item.get("answer") for item in answers]  # VQAv2's annotations
        answers = row.checked_texts("answers", answers)
        require(len(answers) > 0, f"{row.location}: no answers of annotators")
        return answers

    def judge(self, question: Question, answer: Answer) -> Judged:
        truths = [question.truth] if isinstance(question.truth, str) else question.truth
        parsed = answer.text or None
        if self.rule in EXACT:
            marks = {
                name: float(any(rule(answer.text, one) for one in truths) and parsed is not None)
                for name, rule in EXACT.items()
            }
            return Judged(parsed, marks[self.rule], marks)
        if self.rule == "direct_answer":
            return Judged(parsed, vqa.direct_answer(answer.text, truths), {})
        table = self.table(question.language)
        return Judged(parsed, vqa.soft_accuracy(answer.text, truths, table, self.rule), {})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        if self.rule in EXACT:
            scores = {name: share([line["numbers"][name] for line in lines]) for name in EXACT}
        else:
            scores = {"accuracy": share([line["correct"] for line in lines])}
        scores["unparseable"] = unparseable(lines)
        for category, part in by_category(lines).items():
            name = f"{self.headline}_{category or 'other'}"
            scores[name] = share([line["correct"] for line in part])
        return scores


def _pairs(row: Row) -> list[dict[str, str]]:
    pairs = row.value("pairs")
    pairs = literal(row, "pairs", pairs) if isinstance(pairs, str) else pairs
    for pair in pairs if isinstance(pairs, list) else [None]:
        texts = [pair.get(name) for name in ("question", "answer")] if pair else [None]
        if not all(isinstance(item, str) for item in texts):
            row.refuse("pairs", pairs, "a list of {question, answer}")
    return pairs
