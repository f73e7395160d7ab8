"""Lays out what an evaluation asks: every task in every language, with images and without.

tasks, languages -> questions -> items -> batches: a Part
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mllm_jax.common.errors import require
from mllm_jax.data.records.parse import IMAGE, Turn
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.asking import group_items
from mllm_jax.evaluation.extras import Extras
from mllm_jax.evaluation.items import Item, make_items
from mllm_jax.evaluation.results import settings
from mllm_jax.evaluation.results.progress import WITHOUT, Key
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.rows import ROOT
from mllm_jax.evaluation.tasks.task import Question
from mllm_jax.generation.batching import Group
from mllm_jax.generation.engine import Answerer


class Part(NamedTuple):
    """A task in one language, or its questions about images asked without them."""

    task: TableTask
    language: str
    items: list[Item]
    groups: list[Group]
    without_images: bool = False

    @property
    def questions(self) -> list[Question]:
        """In the order of the task."""
        return [item.question for item in self.items]

    @property
    def keys(self) -> list[Key]:
        """Of all answers, in the order of the questions."""
        return [self._key(item) for item in self.items]

    def keys_of(self, group: Group) -> list[Key]:
        """Of a batch's answers."""
        return [self._key(self.items[number]) for number in group.items]

    def marked(self, lines: Sequence[Line]) -> list[Line]:
        """The lines of answers as they are stored: those without images say so."""
        return [line | {WITHOUT: True} for line in lines] if self.without_images else list(lines)

    def _key(self, item: Item) -> Key:
        return self.task.name, self.language, item.question.id, self.without_images


def questions_of(
    task: TableTask,
    languages: Sequence[str] = (),
    limit: int | None = None,
    root: Path = ROOT,
) -> dict[str, list[Question]]:
    """The questions of a task in each of the languages, or in all that it has.

    Raises:
        ConfigError: it has none in one of them, or its data are not there.
    """
    return {name: task.questions(name, root, limit) for name in languages or task.languages}


def make_parts(
    opened: Answerer,
    tasks: Sequence[TableTask],
    languages: Sequence[str],
    limit: int | None,
    root: Path,
    rows: int,
    extras: Extras,
) -> tuple[list[Part], settings.Tree]:
    """What is to be asked, and all settings; see `runner.evaluate_tasks` for the arguments."""
    asked = {task.name: (task, questions_of(task, languages, limit, root)) for task in tasks}
    for task, by_language in asked.values():
        require(
            len(by_language) > 0,
            f"task {task.name}: no data; give --data FILE, or a language with --language"
            f"{': ' if task.data else ''}{', '.join(task.data)}",
        )
        if asks_text(task) or not any(map(asks_text, tasks)):
            for language, questions in by_language.items():
                extras.check(task, language, questions)
    parts, trees = [], {}
    for name, (task, by_language) in asked.items():
        for language, questions in by_language.items():
            parts.append(_part(opened, task, language, questions, rows))
            alone = text_alone(questions) if extras.languages and asks_text(task) else []
            if alone:
                parts.append(_part(opened, task, language, alone, rows, without_images=True))
        trees[name] = settings.of_task(
            task, {name: settings.of_language(of) for name, of in by_language.items()}
        )
    return parts, settings.of_model(opened, rows) | extras.settings | {"tasks": trees}


def _part(
    opened: Answerer,
    task: TableTask,
    language: str,
    questions: Sequence[Question],
    rows: int,
    without_images: bool = False,
) -> Part:
    items = make_items(opened, task, questions)
    return Part(task, language, items, group_items(items, rows), without_images)


def asks_text(task: TableTask) -> bool:
    """Whether answers are texts that the model writes."""
    return task.kind == "generate"


def text_alone(questions: Sequence[Question]) -> list[Question]:
    """The questions about images, word by word without the images; only the answer is asked for.

    One with a turn that says nothing but an image is left out.
    """
    stripped = [
        one._replace(turns=tuple(map(_without_images, one.turns)), images=(), options=())
        for one in questions
        if one.images
    ]
    return [one for one in stripped if all("".join(map(str, turn.parts)) for turn in one.turns)]


def _without_images(turn: Turn) -> Turn:
    if IMAGE not in turn.parts:
        return turn
    text = "".join(part for part in turn.parts if isinstance(part, str))
    return Turn(turn.role, (text.strip(),))
