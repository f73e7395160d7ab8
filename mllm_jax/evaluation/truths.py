"""Reads files of truth for a task: published layouts, or rows with the task's columns.

coco_pope_random.json  a file of questions with labels
ref1.txt ref2.txt      several references of each answer
llava_pope_test.jsonl  questions alone: what the ids of the answers stand for
SEED-Bench.json        rows as the task reads them, here under `questions`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.evaluation.published import (
    KNOWN_TRUTHS,
    Content,
    Entry,
    looks_like,
    read_content,
    read_published_truth,
)
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.rows import ROOT
from mllm_jax.evaluation.tasks.task import Question


class Truths(NamedTuple):
    """What the files of truth hold."""

    questions: list[Question]  # with their truths
    asked: dict[str, Question]  # by id, without truth: category, images and text

    def completed(self, entries: Sequence[Entry]) -> list[Entry]:
        """Answers with the category, images and text that their ids stand for."""
        return [
            entry._replace(question=_completed(entry.question, self.asked)) for entry in entries
        ]


def read_truths(task: TableTask, paths: Sequence[Path], language: str) -> Truths:
    """All files of truth of a task in a language.

    Raises:
        ConfigError: a layout that is neither published nor the task's own, or a bad row (named).
    """
    questions: list[Question] = []
    asked: dict[str, Question] = {}
    for path in paths:
        is_table = path.is_dir() or path.suffix == ".parquet"
        content = None if is_table else read_content(path)
        entries = content and read_published_truth(path, content, language)
        if content is None:
            questions += task.with_data(language, path).questions(language, ROOT)
        elif entries is None:
            questions += _task_rows(task, path, content, language)
        elif content.kind == "text" and questions:
            questions = _more_references(path, questions, [one.question for one in entries])
        elif not any(entry.has_truth for entry in entries):
            asked |= {entry.question.id: entry.question for entry in entries}
        else:
            questions += [task.published(entry.question) for entry in entries]
    return Truths(questions, asked)


def _completed(question: Question, asked: dict[str, Question]) -> Question:
    other = asked.get(question.id)
    if other is None:
        return question
    return question._replace(category=other.category, images=other.images, turns=other.turns)


def _task_rows(task: TableTask, path: Path, content: Content, language: str) -> list[Question]:
    items: list[Any] = content.items
    places: Sequence[str] = content.places
    if content.kind == "object" and isinstance(items[0].get("questions"), list):
        items = items[0]["questions"]
        places = [f"{path} questions[{number}]" for number in range(len(items))]
    try:
        for item, place in zip(items, places, strict=True):
            require(isinstance(item, dict), f"{place}: not an object")
        return task.truths(language, list(zip(items, places, strict=True)))
    except ConfigError as error:
        raise ConfigError(
            f"{looks_like(path, content)}; known layouts of truth: {KNOWN_TRUTHS} ({error})"
        ) from error


def _more_references(
    path: Path, questions: list[Question], others: list[Question]
) -> list[Question]:
    require(
        len(questions) == len(others),
        f"{path}: {len(others)} lines, and the references before it have {len(questions)}",
    )
    pairs = zip(questions, others, strict=True)
    return [one._replace(truth=[*one.truth, *other.truth]) for one, other in pairs]
