"""Gives our tasks to the harnesses: their documents, prompts and scores are those of `evaluate`.

    {"task": "pope", "language": "it"} -> documents, one a question -> results -> metrics

A document is a small row; images stay here, in the process that reads the prepared data. These are
in `data/tasks`, or where the variable MLLM_JAX_TASKS says (`mllm-jax prepare --task NAME`).
"""

import functools
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_jax.common.errors import require
from mllm_jax.data.records.parse import IMAGE
from mllm_jax.evaluation.answers import make_line
from mllm_jax.evaluation.harness.messages import to_messages
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.rows import ROOT
from mllm_jax.evaluation.tasks.task import Answer, Question

VARIABLE = "MLLM_JAX_TASKS"
SPLIT = "test"
Document = Mapping[str, Any]


@functools.cache
def asked(task: str, language: str) -> tuple[TableTask, list[Question]]:
    """A task and its questions. Raises ConfigError where their data are not prepared."""
    loaded = load_task(task)
    return loaded, loaded.questions(language, Path(os.environ.get(VARIABLE, ROOT)))


def rows(task: str, language: str) -> list[dict[str, Any]]:
    """The documents of a task in a language."""
    _, questions = asked(task, language)
    return [
        {
            "task": task,
            "language": language,
            "number": number,
            "id": question.id,
            "group": question.group,
            "question": _text(question),
            "options": list(question.options),
            "truth": json.dumps(question.truth, ensure_ascii=False),
        }
        for number, question in enumerate(questions)
    ]


# ---------------------------------------------------------------- what YAML files of lmms-eval name


def expanded(names: Any) -> Any:
    """`process_docs`: a data set of task and language -> that of their documents."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    return Dataset.from_list([row for one in names for row in rows(one["task"], one["language"])])


def visuals(document: Document) -> list[Image.Image]:
    """`doc_to_visual`: the images, decoded."""
    return [_opened(image) for image in _question(document).images]


def text(document: Document) -> str:
    """`doc_to_text`: the question with its prompts, without images."""
    return document["question"]


def messages(document: Document) -> list[dict[str, Any]]:
    """`doc_to_messages`: the conversation with its images in their places."""
    return to_messages(_question(document).turns, visuals(document))


def results(document: Document, answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`process_results`: the judged answer, under the name of every metric of the task.

    Metrics that are means of the answers' marks have `mark` (percent) and `group` too, which
    lmms-eval's standard errors, clustered by image, read.
    """
    task, _ = asked(document["task"], document["language"])
    question = _question(document)
    answer = Answer(answers[0].strip())
    line = make_line(task.name, question, answer, task.judge(question, answer))
    marks = {"accuracy": line["correct"], **line["numbers"]}
    items: dict[str, dict[str, Any]] = {}
    for name in task.metrics([line]):
        items[name] = {"metric": name, "task": document["task"], "line": line}
        if name in marks:
            items[name] |= {"mark": 100 * marks[name], "group": line["group"]}
    return items


def aggregated(items: Sequence[dict[str, Any]]) -> float:
    """`aggregation`: a metric over all judged answers, as `evaluate` computes it."""
    first = items[0]
    task, _ = asked(first["task"], first["line"]["language"])
    return task.metrics([item["line"] for item in items])[first["metric"]]


# ------------------------------------------------------------------ what YAML files of lm-eval name


def data_set(task: str, language: str, **_: Any) -> dict[str, Any]:
    """`custom_dataset`: the documents, the options without the space that lm-eval adds.

    Raises:
        ConfigError: questions that are conversations, which lm-eval's prompts cannot hold.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    loaded, questions = asked(task, language)
    require(
        all(len(question.turns) == 1 for question in questions),
        f"task {task}: its questions are conversations; lm-eval makes those itself (--num_fewshot, "
        "--apply_chat_template)",
    )
    delimiter = getattr(loaded, "delimiter", "")
    documents = rows(task, language)
    for document in documents:
        document["options"] = [one.removeprefix(delimiter) for one in document["options"]]
        document["answer"] = json.loads(document["truth"])
    return {SPLIT: Dataset.from_list(documents)}


def _question(document: Document) -> Question:
    return asked(document["task"], document["language"])[1][document["number"]]


def _text(question: Question) -> str:
    """The last turn without its images and the line breaks that follow them."""
    parts = question.turns[-1].parts
    after = [None, *parts]
    return "".join(
        part.removeprefix("\n") if before is IMAGE else part
        for before, part in zip(after, parts, strict=False)
        if isinstance(part, str)
    )


def _opened(image: str | bytes) -> Image.Image:
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        opened.load()
        return opened
