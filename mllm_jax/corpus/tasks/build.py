"""Makes the LLaVA records of the three tasks from an aligned record (LRM-LLaVA, section 3).

    mvqa eu        question eu                        -> answer eu
    ep   eu        question eu, translate it first    -> question en, answer eu
    bvqa eu-en     question eu, answer in English     -> answer en
         en-eu     question en, answer in Basque      -> answer eu

English is the pivot: never EP for English, never BVQA without it.

Not a task of the paper, and made where it is asked for alone: `pairs`, records of MVQA and BVQA in
twos that have the same answer, for the regularizer over pairs (`optimizer.pairs`):

    pairs eu       question eu, and question en, answer in Basque        -> answer eu, twice
                   question en, and question eu, answer in English       -> answer en, twice
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mllm_jax.corpus.tasks.aligned import Aligned
from mllm_jax.corpus.tasks.wordings import Instructions
from mllm_jax.data.records.parse import MARK

TASKS = ("mvqa", "ep", "bvqa")
PAIRED = "pairs"
PAIR = "pair"  # field of its records: the two that belong together have the same value
PIVOT = "en"


class Form(NamedTuple):
    """One way to ask: the languages of the question and of the answer."""

    task: str
    question: str
    answer: str

    @property
    def name(self) -> str:
        """As in the ids of records: `ep/eu`, `bvqa/eu-en`."""
        between = f"{self.question}-{self.answer}"
        return f"{self.task}/{between if self.task == 'bvqa' else self.answer}"


def forms(task: str, language: str) -> list[Form]:
    """How records of a language are asked in a task; none for a task that is not for English."""
    if task == "mvqa":
        return [Form(task, language, language)]
    if language == PIVOT:
        return []
    if task == "ep":
        return [Form(task, language, language)]
    if task == PAIRED:
        answers = (language, PIVOT), (PIVOT, language)
        return [
            form
            for code, other in answers
            for form in (Form("mvqa", code, code), Form("bvqa", other, code))
        ]
    return [Form(task, language, PIVOT), Form(task, PIVOT, language)]


def missing(record: Aligned, form: Form) -> str | None:
    """The first text that a form needs and the record lacks: "no question in eu"."""
    questions = [form.question, PIVOT] if form.task == "ep" else [form.question]
    for code in questions:
        if code not in record.questions:
            return f"no question in {code}"
    return None if form.answer in record.answers else f"no answer in {form.answer}"


def make(
    record: Aligned, form: Form, instructions: Instructions, task: str | None = None
) -> dict[str, Any]:
    """The LLaVA record of a form in a task; nothing may be `missing`."""
    question, answer = record.questions[form.question], record.answers[form.answer]
    lines = [MARK] * record.images + [question]
    if form.task == "ep":
        lines.append(instructions.pivot(form.question, form.answer))
        answer = f"{record.questions[PIVOT]}\n{answer}"
    elif form.task == "bvqa":
        lines.append(instructions.bilingual(form.question, form.answer))
    picture = {} if record.image is None else {"image": record.image}
    turns = [{"from": "human", "value": "\n".join(lines)}, {"from": "gpt", "value": answer}]
    return {
        "id": f"{record.id}/{form.name}",
        **picture,
        "language": form.answer,
        **({PAIR: f"{record.id}/{form.answer}"} if task == PAIRED else {}),
        "conversations": turns,
    }


def check_wordings(task: str, language: str, instructions: Instructions) -> None:
    """Raises ConfigError for a language whose wordings a task lacks, before anything is read."""
    for form in forms(task, language):
        if form.task == "ep":
            instructions.pivot(form.question, form.answer)
        elif form.task == "bvqa":
            instructions.bilingual(form.question, form.answer)


def combinations(tasks: list[str], languages: list[str]) -> Iterator[tuple[str, str]]:
    """(task, language) of all files, in the order of tables."""
    return ((t, code) for t in tasks for code in languages if forms(t, code))
