"""Recomputes a task's numbers from stored answers, without a model.

Answers and truth are matched by id, and every answer is judged again by the task.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, cut, one_line, quoted, require
from mllm_jax.common.folders import check_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.evaluation.answers import (
    Line,
    answer_of,
    check_lines,
    is_line,
    languages_of,
    make_line,
    question_of,
    read_answers,
)
from mllm_jax.evaluation.extras import Extra, Extras
from mllm_jax.evaluation.matching import matched
from mllm_jax.evaluation.published import (
    Content,
    Entry,
    read_content,
    read_published_answers,
)
from mllm_jax.evaluation.tasks.base import EVERY, TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.rows import ROOT
from mllm_jax.evaluation.tasks.task import Answer, Question
from mllm_jax.evaluation.truths import read_truths

Pair = tuple[Question, Answer]


class Score(NamedTuple):
    """The numbers of a task in one language."""

    task: str
    language: str
    count: int
    metrics: dict[str, float]
    extra: Extra  # fidelity, chrF and BLEU, where they are asked for


def score(
    name: str,
    answers: Path,
    truths: Sequence[Path] = (),
    language: str | None = None,
    root: Path = ROOT,
    extras: Extras | None = None,
    without_images: Path | None = None,
) -> tuple[TableTask, list[Score]]:
    """Scores a file of answers.

    Args:
        name: a task, or a task file.
        answers: as this project or another published them, see `published`.
        truths: files with the truth; several for a task with several (POPE's three, references of
            captions). None where the answers hold it, or the task's data are prepared.
        language: of the answers; of answers.jsonl, which of its languages.
        root: folder of prepared task data.
        extras: what is computed beside the task's own numbers.
        without_images: answers.jsonl of the same questions, asked without their images.

    Returns:
        The task, and its numbers in every language of the answers.

    Raises:
        ConfigError: a layout that is not known, answers and truth that do not fit each other,
            answers of another task, or a language that cannot be identified.
    """
    task = load_task(name)
    extras = extras or Extras()
    content = read_content(answers)
    if content.items and is_line(content.items[0]):
        lines = _own_lines(task, answers, content, language)
        pairs = _own_pairs(task, lines, truths)
    else:
        language = language or default_language(task)
        print(f"language: {language}", flush=True)
        pairs = _published_pairs(task, answers, content, truths, language, root)
    judged = [_line(task, question, answer) for question, answer in pairs]
    alone = [] if without_images is None else read_answers(without_images)
    scores = []
    for one in languages_of(judged):
        lines, without = ([x for x in of if x["language"] == one] for of in (judged, alone))
        extras.check(task, one)
        extra = extras.of(lines, without)
        scores.append(Score(task.name, one, len(lines), task.metrics(lines), extra))
    return task, scores


def score_file(
    name: str,
    answers: Path,
    truths: Sequence[Path] = (),
    language: str | None = None,
    fidelity: Sequence[str] = (),
    identifier: Path | None = None,
    chrf: bool = False,
    without_images: Path | None = None,
    json_file: Path | None = None,
) -> list[Score]:
    """Scores a file of answers; prints a table, and writes the numbers to a file.

    Args:
        name, answers, truths, language, without_images: see `score`.
        fidelity, identifier, chrf: see `Extras`.
        json_file: also gets the numbers.
    """
    if json_file is not None:
        check_file(json_file)
    extras = Extras(fidelity, identifier, chrf)
    require(
        len(fidelity) > 0 or without_images is None,
        "--without-images is used with --fidelity LANGUAGE ... alone",
    )
    extras.say()
    task, scores = score(
        name, answers, truths, language, extras=extras, without_images=without_images
    )
    print(table(task, scores), end="", flush=True)
    for name, signature in scores[0].extra.signatures.items():
        print(f"{name}: {signature}", flush=True)
    if json_file is not None:
        write_json(json_file, to_json(scores))
    return scores


def table(task: TableTask, scores: Sequence[Score]) -> str:
    """The numbers as a paper prints them: a row for each metric, a column for each language."""
    columns = [
        {"questions": f"{one.count:,}", **task.printed(one.metrics), **one.extra.printed}
        for one in scores
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "-") for column in columns)) for name in names]
    return markdown_table((task.name, *(one.language for one in scores)), rows)


def default_language(task: TableTask) -> str:
    """Of answers that do not say theirs: the task's only one, else English, else its first."""
    names = [name for name in task.data or task.post_prompt if name != EVERY]
    return "en" if "en" in names or not names else names[0]


def to_json(scores: Sequence[Score]) -> dict[str, Any] | list[dict[str, Any]]:
    """{"task", "language", "count", "metrics"}, or a list of such for several languages."""
    trees = [
        {
            "task": one.task,
            "language": one.language,
            "count": one.count,
            "metrics": {**one.metrics, **one.extra.numbers},
            **({"signatures": dict(one.extra.signatures)} if one.extra.signatures else {}),
        }
        for one in scores
    ]
    return trees[0] if len(trees) == 1 else trees


def _line(task: TableTask, question: Question, answer: Answer) -> Line:
    """An answer, judged. Raises ConfigError for a truth or an answer that is not of the task."""
    try:
        question = task.published(question)
        return make_line(task.name, question, answer, task.judge(question, answer))
    except ConfigError as error:
        raise ConfigError(f"answer {quoted(question.id, 60)}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"answer {quoted(question.id, 60)}: truth {quoted(question.truth, 80)} is not one of "
            f"task {task.name}; score it by its own task"
        ) from error


# ---------------------------------------------------------------------------------- our own answers


def _own_lines(task: TableTask, path: Path, content: Content, language: str | None) -> list[Line]:
    if content.kind == "lines":
        lines = read_answers(path)
    else:
        lines = content.items
        check_lines(lines, content.places)
    counts = Counter(line["task"] for line in lines)
    names = [name for name in counts if _is_of(task, name)]
    others = ", ".join(f"{name} ({counts[name]:,})" for name in counts if name not in names)
    if not names:
        raise ConfigError(
            f"{path}: no answers of task {task.name}; there are {cut(others, 160)}; name theirs"
        )
    if others:
        print(f"answers of other tasks are left out: {one_line(others)}", flush=True)
        lines = [line for line in lines if line["task"] in names]
    if language is None:
        return lines
    chosen = [line for line in lines if line["language"] == language]
    require(
        len(chosen) > 0,
        f"{path}: no answers in {quoted(language, 40)}; there are {', '.join(languages_of(lines))}",
    )
    return chosen


def _is_of(task: TableTask, name: str) -> bool:
    """Whether answers of a task can be scored by this one: it, or one that differs in its rule."""
    if name == task.name:
        return True
    try:
        other = load_task(name)
    except ConfigError:  # a task file's own name
        return False
    free = ("name", "rule", "words")
    same = [{k: v for k, v in one.settings.items() if k not in free} for one in (task, other)]
    return same[0] == same[1]


def _own_pairs(task: TableTask, lines: Sequence[Line], truths: Sequence[Path]) -> list[Pair]:
    """Our answers with the truth that is stored beside them, or that of files."""
    entries = [Entry(question_of(line), answer_of(line)) for line in lines]
    if not truths:
        return [(entry.question, entry.answer) for entry in entries]
    pairs = []
    for language in languages_of(lines):
        chosen = [entry for entry in entries if entry.question.language == language]
        pairs += matched(chosen, read_truths(task, truths, language).questions)
    return pairs


# ------------------------------------------------------------------------------- published answers


def _published_pairs(
    task: TableTask,
    path: Path,
    content: Content,
    truths: Sequence[Path],
    language: str,
    root: Path,
) -> list[Pair]:
    entries = read_published_answers(path, content, language)
    if truths:
        read = read_truths(task, truths, language)
        return matched(read.completed(entries), read.questions, task.leaves_out)
    if all(entry.has_truth for entry in entries):
        return matched(entries, [task.published(entry.question) for entry in entries])
    try:
        questions = task.questions(language, root)
    except ConfigError as error:
        raise ConfigError(f"{path} holds no truth: give --truth FILE ({error})") from error
    return matched(entries, questions, task.leaves_out)
