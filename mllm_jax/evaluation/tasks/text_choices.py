"""Text questions by the log-likelihood of their options: XStoryCloze, Belebele; lm-eval's way.

    template  "{input_sentence_1} {input_sentence_2}"     columns in braces
    options   one column each, or the same texts for all questions

The truth is the number of the right option, from 0. Nothing is generated. By default the prompt is
plain text, as lm-eval gives it to a model without --apply_chat_template.

    shots: 5   five answered questions before each: texts with a blank line between them, or, with
               `chat`, turns of the conversation (--fewshot_as_multiturn)
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, ClassVar

from mllm_jax.common.errors import quoted, require
from mllm_jax.common.ranges import NameText, Range
from mllm_jax.data.records.parse import Turn, user_turn
from mllm_jax.evaluation.metrics import options
from mllm_jax.evaluation.tasks.base import EVERY, Line, TableTask, share
from mllm_jax.evaluation.tasks.data import Names, Prompt, Prompts
from mllm_jax.evaluation.tasks.rows import Row, Rows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Kind, Question

COLUMN = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, kw_only=True)
class TextChoices(TableTask):
    """Columns: id, answer and those of the template."""

    kind: ClassVar[Kind] = "choose"
    family: ClassVar[str] = "text_choices"
    headline: ClassVar[str] = "acc"

    chat: bool = False  # type: ignore[misc]
    """Whether the prompt is a user's turn in the model's chat template."""
    image_columns: Names = ()
    """Columns with images."""
    template: Prompts = field(default_factory=dict)
    """Language -> the prompt, with columns in braces; `*` is every other language."""
    option_columns: Names = ()
    """Columns with one option each."""
    fixed_options: Names = ()
    """The options of all questions, as letters."""
    delimiter: Prompt = " "
    """Between the prompt and an option; not counted as a character of it."""
    first: Annotated[int, Range("[0, 1]")] = 0
    """The number of the first option in the column `answer`."""
    shots: Annotated[int, Range("[0, 100]")] = 0
    """How many answered questions are shown first: the first, never the question itself."""
    shot_split: NameText | None = None
    """The split that they are of; by default that of the questions."""

    def __post_init__(self):
        super().__post_init__()
        require(
            bool(self.option_columns) != bool(self.fixed_options),
            "give either option_columns or fixed_options",
        )

    def _lacks(self, language: str) -> str | None:
        if language in self.template or EVERY in self.template:
            return super()._lacks(language)
        return "template"

    def _asked(self, rows: Rows) -> Iterator[Question]:
        data = rows.data
        if self.shot_split is not None:
            data = dataclasses.replace(data, split=self.shot_split)
        others = super()._asked(dataclasses.replace(rows, data=data))
        examples = list(islice(others, self.shots + 1)) if self.shots else []
        for question in super()._asked(rows):
            mine = [one for one in examples if one.id != question.id][: self.shots]
            require(
                len(mine) == self.shots,
                f"task {self.name}: {len(mine)} questions to show before another, not {self.shots}",
            )
            yield self._with_shots(question, mine)

    def _with_shots(self, question: Question, examples: Sequence[Question]) -> Question:
        if self.chat:
            turns = [
                turn
                for one in examples
                for turn in (*one.turns, Turn("assistant", (one.options[one.truth].strip(),)))
            ]
            return question._replace(turns=(*turns, *question.turns))
        before = "".join(f"{_context(one)}{one.options[one.truth]}\n\n" for one in examples)
        return question._replace(turns=(user_turn(before + _context(question)),))

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        texts = [row.text(name) for name in self.option_columns] or list(self.fixed_options)
        value = row.text("answer").strip()
        last = len(texts) - 1 + self.first
        if not (value.isdecimal() and self.first <= int(value) <= last):
            row.refuse("answer", value, f"the number of an option, {self.first} to {last}")
        prompt = self._prompt("template", rows.language)
        context = COLUMN.sub(lambda match: row.text(match[1]), prompt)
        choices = tuple(self.delimiter + text for text in texts)
        truth = int(value) - self.first
        yield self.make(rows, row, split, truth, context, options=choices)

    def published(self, question: Question) -> Question:
        """The truth is the number of an option. Raises ConfigError where it is not."""
        truth, count = question.truth, len(question.options)
        require(
            count > 0,
            f"no options are stored; task {self.name} needs answers with log-likelihoods of theirs "
            "(answers.jsonl, lm-eval's samples)",
        )
        require(
            type(truth) is int and 0 <= truth < count,
            f"truth {quoted(truth, 60)} is not the number of one of {count} options, from 0",
        )
        return question

    def judge(self, question: Question, answer: Answer) -> Judged:
        texts = [option.removeprefix(self.delimiter) for option in question.options]
        tokens = answer.tokens or (1,) * len(texts)
        best = options.chosen(answer.log_likelihoods, texts, tokens)
        if not answer.tokens:  # lm-eval's samples do not say
            del best["acc_token"]
        right = {name: float(number == question.truth) for name, number in best.items()}
        return Judged(str(best["acc"]), right["acc"], right)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        scores = {}
        # token counts, which acc_token needs, may not be known of all
        for name in dict.fromkeys(n for line in lines for n in line["numbers"]):
            if not all(name in line["numbers"] for line in lines):
                continue
            values = [line["numbers"][name] for line in lines]
            scores[name] = share(values)
            scores[f"{name}_stderr"] = 100 * options.standard_error(values)
        return scores

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """As lm-eval prints them: fractions with their standard errors."""
        return {
            name: f"{value / 100:.4f} ± {metrics[f'{name}_stderr'] / 100:.4f}"
            for name, value in metrics.items()
            if not name.endswith("_stderr")
        }


def _context(question: Question) -> str:
    return "".join(part for part in question.turns[-1].parts if isinstance(part, str))
