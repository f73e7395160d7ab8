"""Writes and reads answers.jsonl: one judged answer a line, with all that judging it again needs.

    {"task": "pope", "language": "eu", "id": "adversarial/7", "group": "a.jpg",
     "category": "adversarial", "images": ["a.jpg"], "question": "Ba al dago ...?",
     "prompt": "<|start_header_id|>user ...", "truth": "yes", "options": [], "answer": "Bai",
     "log_likelihoods": [], "tokens": [], "finished": true,
     "parsed": "yes", "correct": 1.0, "numbers": {}}

Further keys are kept.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.json_file import parse_json
from mllm_jax.data.records.parse import Turn
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question, image_name

Line = dict[str, Any]
_TEXTS = ("task", "language", "id", "group", "category", "question", "answer")
_LISTS = ("images", "options", "log_likelihoods", "tokens")
ROUNDING = 1e-3  # nats above 0 that a sum of log-likelihoods in bfloat16 may have
_KEYS = (*_TEXTS, *_LISTS, "truth", "parsed", "correct", "numbers", "finished")


def make_line(
    task: str, question: Question, answer: Answer, judged: Judged, prompt: str = "", **more: Any
) -> Line:
    """One answer as a line.

    Args:
        task: its name.
        question: as it was asked.
        answer: as the model gave it.
        judged: by the task.
        prompt: the text that the model was given, the chat template's marks included.
        more: further keys, for those who want to see more than a metric does.
    """
    return {
        "task": task,
        "language": question.language,
        "id": question.id,
        "group": question.group,
        "category": question.category,
        "images": [image_name(image) for image in question.images],
        "question": question.text,
        "prompt": prompt,
        "truth": question.truth,
        "options": list(question.options),
        "answer": answer.text,
        "log_likelihoods": list(answer.log_likelihoods),
        "tokens": list(answer.tokens),
        "finished": answer.finished,
        **judged._asdict(),
        **more,
    }


def question_of(line: Line) -> Question:
    """The question of a line: images by name, and no turn but the last."""
    return Question(
        id=line["id"],
        language=line["language"],
        turns=(Turn("user", (line["question"],)),),
        images=tuple(line["images"]),
        truth=line["truth"],
        options=tuple(line["options"]),
        group=line["group"],
        category=line["category"],
    )


def answer_of(line: Line) -> Answer:
    """What the model gave, from a line."""
    numbers = tuple(line["log_likelihoods"]), tuple(line["tokens"])
    return Answer(line["answer"], *numbers, line["finished"])


def write_line(line: Line) -> str:
    """The text of a line with its line break.

    Raises:
        ValueError: a number is not finite, which JSON does not know.
    """
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def read_answers(path: str | Path) -> list[Line]:
    """All lines of an answers.jsonl, checked.

    Raises:
        ConfigError: no such file, no answers, or a line (named) that is not JSON, lacks a key, has
            a value of another type, or answers a question again.
    """
    path = Path(path)
    require(path.is_file(), f"{path}: no such file")
    numbered = enumerate(path.read_bytes().splitlines(), start=1)
    rows = [(number, data) for number, data in numbered if data.strip()]
    require(len(rows) > 0, f"{path}: no answers")
    lines = [parse_json(data, path, number) for number, data in rows]
    check_lines(lines, [f"{path}:{number}" for number, _ in rows])
    return lines


def check_lines(lines: Sequence[Any], places: Sequence[str]) -> None:
    """Raises ConfigError unless all values are lines of answers.jsonl, to a question each."""
    earlier: dict[tuple[str, str, str], str] = {}
    for line, place in zip(lines, places, strict=True):
        check_line(line, place)
        first = earlier.setdefault((line["task"], line["language"], line["id"]), place)
        require(
            first is place,
            f"{place}: id {quoted(line['id'], 60)} was answered in {first} already; keep one",
        )


def is_line(value: Any) -> bool:
    """Whether a JSON value looks like a line of answers.jsonl, to tell it from other layouts."""
    return isinstance(value, dict) and {"task", "language", "id", "answer", "correct"} <= set(value)


def check_line(line: Any, location: str) -> None:
    """Raises ConfigError with `location` unless a JSON value is a line of answers.jsonl."""
    require(isinstance(line, dict), f"{location}: not an object; expected a line of answers.jsonl")
    missing = [key for key in _KEYS if key not in line]
    require(not missing, f"{location}: no {', '.join(missing)}; expected a line of answers.jsonl")
    wrong = _wrong(line)
    if wrong is not None:
        key, expected = wrong
        raise ConfigError(f"{location}: {key} {quoted(line[key], 60)} is not {expected}")


def _wrong(line: Line) -> tuple[str, str] | None:
    """The first key whose value is not of its type, and what it should be."""
    for keys, kind, expected in ((_TEXTS, str, "text"), (_LISTS, list, "a list")):
        for key in keys:
            if not isinstance(line[key], kind):
                return key, expected
    if not (_is_number(line["correct"]) and 0 <= line["correct"] <= 1):
        return "correct", "a number from 0 to 1"
    for key in ("images", "options"):
        if not all(isinstance(item, str) for item in line[key]):
            return key, "a list of texts"
    if not isinstance(line["finished"], bool):
        return "finished", "true or false"
    if not isinstance(line["parsed"], str | None):
        return "parsed", "text or null"
    if not (isinstance(line["numbers"], dict) and all(map(_is_number, line["numbers"].values()))):
        return "numbers", "an object of numbers"
    if not all(_is_number(value) and value <= ROUNDING for value in line["log_likelihoods"]):
        return "log_likelihoods", "a list of numbers that are not above 0"
    if not all(type(value) is int and value > 0 for value in line["tokens"]):
        return "tokens", "a list of whole numbers above 0"
    for key in ("log_likelihoods", "tokens"):
        if line[key] and len(line[key]) != len(line["options"]):
            return key, f"as long as options ({len(line['options'])})"
    return None


def _is_number(value: Any) -> bool:
    """Python's JSON reads NaN and Infinity; they are not numbers of an answer."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def languages_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """Languages in order of appearance."""
    return tuple(dict.fromkeys(line["language"] for line in lines))
