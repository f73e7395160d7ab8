"""Recomputes a task's numbers from stored answers, without a model.

Answers and truth are matched by id, and every answer is judged again by the task.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from mllm_jax.evaluation.chrf import line_chrf
from mllm_jax.evaluation.fidelity import line_fidelity
from mllm_jax.evaluation.language_id import open_identifier
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

Identify = Callable[[Sequence[Line]], dict[str, float]]  # lines of one language -> their fidelity


class Score(NamedTuple):
    """The numbers of a task in one language."""

    task: str
    language: str
    count: int
    metrics: dict[str, float]
    more: dict[str, float]  # fidelity, chrF and BLEU, where they are asked for
    signatures: dict[str, str]  # of chrF and BLEU


def score(
    name: str,
    answers: Path,
    truths: Sequence[Path] = (),
    language: str | None = None,
    root: Path = ROOT,
    fidelity: Sequence[str] = (),
    identifier: Path | None = None,
    chrf: bool = False,
) -> tuple[TableTask, list[Score]]:
    """Scores a file of answers.

    Args:
        name: a task, or a task file.
        answers: as this project or another published them, see `published`.
        truths: files with the truth; several for a task with several (POPE's three, references of
            captions). None where the answers hold it, or the task's data are prepared.
        language: of the answers; of answers.jsonl, which of its languages.
        root: folder of prepared task data.
        fidelity: languages that answers may be in; empty: their language is not identified.
        identifier: model file of what identifies it, see `language_id.open_identifier`.
        chrf: whether chrF and BLEU against the true answers are computed, too.

    Returns:
        The task, and its numbers in every language of the answers.

    Raises:
        ConfigError: a layout that is not known, answers and truth that do not fit each other,
            answers of another task, or a language that cannot be identified.
    """
    task = load_task(name)
    identify = _identifier(task, fidelity, identifier)
    content = read_content(answers)
    if content.items and is_line(content.items[0]):
        lines = _own_lines(task, answers, content, language)
        pairs = _own_pairs(task, lines, truths)
    else:
        language = language or default_language(task)
        print(f"language: {language}", flush=True)
        pairs = _published_pairs(task, answers, content, truths, language, root)
    judged = [_line(task, question, answer) for question, answer in pairs]
    groups = [[line for line in judged if line["language"] == one] for one in languages_of(judged)]
    return task, [_score(task, group, identify, chrf) for group in groups]


def score_file(
    name: str,
    answers: Path,
    truths: Sequence[Path] = (),
    language: str | None = None,
    fidelity: Sequence[str] = (),
    identifier: Path | None = None,
    chrf: bool = False,
    json_file: Path | None = None,
) -> list[Score]:
    """Scores a file of answers, see `score`; prints a table, and writes the numbers to a file."""
    if json_file is not None:
        check_file(json_file)
    task, scores = score(
        name, answers, truths, language, fidelity=fidelity, identifier=identifier, chrf=chrf
    )
    print(table(task, scores), end="", flush=True)
    for name, signature in scores[0].signatures.items():
        print(f"{name}: {signature}", flush=True)
    if json_file is not None:
        write_json(json_file, to_json(scores))
    return scores


def table(task: TableTask, scores: Sequence[Score]) -> str:
    """The numbers as a paper prints them: a row for each metric, a column for each language."""
    columns = [
        {"questions": f"{one.count:,}", **task.printed(one.metrics), **_percent(one.more)}
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
            "metrics": one.metrics | one.more,
            **({"signatures": one.signatures} if one.signatures else {}),
        }
        for one in scores
    ]
    return trees[0] if len(trees) == 1 else trees


def _percent(numbers: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in numbers.items()}


def _score(task: TableTask, lines: Sequence[Line], identify: Identify, chrf: bool) -> Score:
    more, signatures = identify(lines), {}
    if chrf:
        scores, signatures = line_chrf(lines)
        more |= scores
    return Score(task.name, lines[0]["language"], len(lines), task.metrics(lines), more, signatures)


def _identifier(task: TableTask, languages: Sequence[str], model: Path | None) -> Identify:
    """What computes the fidelity of the answers in one language; nothing without `languages`."""
    if not languages:
        require(model is None, "--identifier is used with --fidelity LANGUAGE ... alone")
        return lambda lines: {}
    require(
        task.kind == "generate",
        f"--fidelity: task {task.name} asks for no text whose language could be identified",
    )
    opened = open_identifier(model)
    print(f"language identified by {opened.name} among {', '.join(languages)}", flush=True)
    return lambda lines: line_fidelity(lines, languages, opened)


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
