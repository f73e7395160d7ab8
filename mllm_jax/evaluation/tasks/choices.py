"""Options by letter: SEED-Bench, MMStar, MMBench, A-OKVQA, ScienceQA; see `metrics.letters`.

    truth {"letter": "B", "options": ["a cat", "a dog"]}     options: [] where the question has them

By circular evaluation (MMBench) a question is asked once for every rotation of its options; its
`group` is the question.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mllm_jax.common.errors import quoted, require
from mllm_jax.common.ranges import Range
from mllm_jax.evaluation.metrics import letters, options
from mllm_jax.evaluation.tasks.base import (
    Line,
    TableTask,
    by_category,
    one_text,
    share,
    unparseable,
)
from mllm_jax.evaluation.tasks.data import Column, Names, Prompt
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question

WRITTEN = re.compile(r"^\(?([A-Z])[.)] *(.*)$", re.MULTILINE)  # options inside a question's text


@dataclass(frozen=True, kw_only=True)
class Choices(TableTask):
    """Columns: id, question, image, answer; hint, options (a list) where one column holds them."""

    rule: Literal["letter", "seed", "mmstar", "mmmu", "scienceqa"] = "letter"
    """How an answer is read."""
    answer: Literal["letter", "index", "text"] = "letter"
    """What the column `answer` holds; an index counts from 0."""
    option_columns: Names = ()
    """Columns with one option each; empty ones are left out."""
    option_count: Annotated[int, Range("[0, 26]")] = 0
    """How many options a question has that holds them in its text."""
    hint: Prompt = "{}\n"
    """How the column `hint` comes before the question, where {} is the hint."""
    circular: bool = False
    """Asks a question once for every rotation of its options."""
    letter_likelihoods: bool = False
    """Also asks for the log-likelihood of every letter (mLatxa's MMStar)."""
    skip: Column | None = None
    """Column that leaves its row out where it is true."""
    image_category: bool = False
    """Whether the category of a question is that it has an image: `image` or `text`."""
    family: ClassVar[str] = "choices"

    @property
    def headline(self) -> str:  # type: ignore[override]
        return "circular" if self.circular else "accuracy"

    @property
    def leaves_out(self) -> bool:
        return self.skip is not None

    def questions(self, language: str, root: Path, limit: int | None = None) -> list[Question]:
        """See `Task.questions`; of rotated options only whole sets."""
        questions = super().questions(language, root, limit)
        if not self.circular:
            return questions
        counts = Counter(question.group for question in questions)
        whole = [one for one in questions if counts[one.group] == len(one.truth["options"])]
        require(
            len(whole) > 0, f"task {self.name}: limit {limit} is less than one question's options"
        )
        return whole

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        if self.skip and row.value(self.skip):
            return
        texts = self._options(row)
        count, most = len(texts) or self.option_count, len(self.table(rows.language).letters)
        require(0 < count <= most, f"{row.location}: {count} options; 1 to {most} are allowed")
        correct = self._correct(row, texts, count)
        hint = self.hint.replace("{}", row.text("hint")) if row.has("hint") else ""
        question = hint + self.asked(row, rows.language)
        if not self.circular:
            yield self._question(rows, row, split, question, texts, correct, count)
            return
        for shift, rotated in enumerate(letters.rotations(texts)):
            key, place = self.key(row, split), (correct - shift) % count
            asked = self._question(rows, row, split, question, rotated, place, count)
            yield asked._replace(id=f"{key}/{shift}", group=key)

    def _question(
        self,
        rows: Rows,
        row: Row,
        split: str,
        question: str,
        texts: Sequence[str],
        correct: int,
        count: int,
    ) -> Question:
        names = self.table(rows.language).letters[:count]
        lines = [f"\n{name}. {text}" for name, text in zip(names, texts, strict=False)]
        truth = {"letter": names[correct], "options": list(texts)}
        asked = self.wording(rows.language, question.strip() + "".join(lines))
        continuations = tuple(names) if self.letter_likelihoods else ()
        complete = self.make(rows, row, split, truth, asked, options=continuations)
        return self._with_category(complete, bool(complete.images))

    def _with_category(self, question: Question, has_image: bool) -> Question:
        category = "image" if has_image else "text"
        return question._replace(category=category) if self.image_category else question

    def _options(self, row: Row) -> list[str]:
        if self.option_columns:
            return [row.text(name) for name in self.option_columns if _is_option(row, name)]
        if "options" not in self.columns:
            return []
        return row.texts("options")

    def _correct(self, row: Row, texts: Sequence[str], count: int) -> int:
        value = row.text("answer").strip()
        if self.answer == "text" and list(texts).count(value) == 1:
            return list(texts).index(value)
        if self.answer == "index" and value.isdecimal() and int(value) < count:
            return int(value)
        names = letters.LETTERS[:count]
        if self.answer == "letter" and len(value) == 1 and value.upper() in names:
            return names.index(value.upper())
        expected = {"text": "one of the options", "index": f"a number below {count}"}
        row.refuse("answer", value, expected.get(self.answer, f"one of {', '.join(names)}"))

    def published(self, question: Question) -> Question:
        """See `lettered`; the category may be whether there is an image."""
        return self._with_category(lettered(question), bool(question.images))

    def judge(self, question: Question, answer: Answer) -> Judged:
        truth: dict[str, Any] = question.truth
        names = self.table(question.language).letters
        texts = truth["options"] or [""] * self.option_count
        require(
            truth["letter"] in tuple(names[: len(texts)]),
            f"truth {quoted(truth, 60)} names none of its {len(texts)} options",
        )
        parsed = letters.parse_letter(answer.text, texts, self.rule, names)
        numbers = {}
        if answer.log_likelihoods:
            each = [1] * len(question.options)
            best = options.chosen(answer.log_likelihoods, question.options, each)
            numbers = {"likelihood": float(question.options[best["acc"]] == truth["letter"])}
        return Judged(parsed, float(parsed == truth["letter"]), numbers)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        scores = {"accuracy": share([line["correct"] for line in lines])}
        if self.circular:
            passes: dict[str, list[bool]] = {}
            counts: dict[str, int] = {}
            for line in sorted(lines, key=lambda line: line["id"]):
                passes.setdefault(line["group"], []).append(line["correct"] == 1)
                counts[line["group"]] = len(line["truth"]["options"])
            for group, of in passes.items():
                require(
                    len(of) == counts[group],
                    f"question {quoted(group, 60)}: {len(of)} of {counts[group]} rotations are "
                    "answered; circular accuracy needs all",
                )
            scores = letters.circular(passes)
        if all("likelihood" in line["numbers"] for line in lines):
            likelihood = share([line["numbers"]["likelihood"] for line in lines])
            scores["accuracy_likelihood"] = likelihood
        scores["unparseable"] = unparseable(lines)
        for category, part in by_category(lines).items():
            name = f"accuracy_{category or 'other'}"
            scores[name] = share([line["correct"] for line in part])
        return scores


def _is_option(row: Row, name: str) -> bool:
    """MMBench writes nan for an option that a question lacks."""
    return row.has(name) and row.text(name) != "nan"


def lettered(question: Question) -> Question:
    """A question of a published file, with options in its text and a letter as its truth.

    Raises:
        ConfigError: the text holds no options, or no option of that letter.
    """
    if isinstance(question.truth, dict):
        return question  # of a task's rows
    options = WRITTEN.findall(question.text)
    start = max((n for n, (name, _) in enumerate(options) if name == "A"), default=len(options))
    texts = [text for _, text in options[start:]]
    letter = str(one_text(question.truth)).strip().upper()
    require(
        letter in letters.LETTERS[: len(texts)] and len(letter) == 1,
        f"truth of {question.id}: {quoted(question.truth, 60)} is not the letter of an option in "
        f"its text, which has {len(texts)} (lines such as 'A. a cat')",
    )
    return question._replace(truth={"letter": letter, "options": texts})
