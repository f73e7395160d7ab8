"""Reads answers and truths as other projects publish them, recognised by their keys.

    answers  JSONL of {question_id, text | prediction | answer}       LLaVA, POPE
             JSONL of {question, answer}, without ids                  POPE's own program
             a JSON object of {id: text}, or one with it as `outputs`  LLaVA's ScienceQA
             a JSON list of {question_id, answer}                      VQA's result files
             JSONL of {doc_id, doc, target, filtered_resps}            samples of both harnesses
             lines of text                                             nlg-eval's hypotheses
    truths   JSONL of {question_id, text, label}                       POPE; the name says which
             JSONL of {question_id, text, category}, without a truth   LLaVA's file of POPE
             a JSON object of {id: {question, answer}}                 GQA
             a JSON list of {id, conversations}                        LLaVA's question files
             a JSON object with `annotations`                          VQA's annotations
             lines of text, one file for each reference                nlg-eval's references

Anything else is an error that lists these.
"""

import itertools
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, cut, one_line, quoted, require
from mllm_jax.common.json_file import NotJSON, loads, parse_json
from mllm_jax.data.records.parse import MARK, user_turn
from mllm_jax.evaluation.tasks.task import Answer, Question

ID_KEYS = ("question_id", "questionId")
LINE = "line "  # and its number: the id of an answer that has none
ANSWER_KEYS = ("text", "prediction", "answer")  # of a line that answers, first one counts
KNOWN_ANSWERS = (
    "answers.jsonl of this project, JSONL of {question_id, text|prediction|answer} (LLaVA), "
    "JSONL of {question, answer} (POPE), "
    "JSON {id: text} (ScienceQA), JSON list of {question_id, answer} (VQA), lm-eval's samples, "
    "or a .txt of lines"
)
KNOWN_TRUTHS = (
    "POPE's JSONL of {question_id, text, label}, a JSON list of {id, conversations} (LLaVA), "
    "VQA's JSON with annotations, .txt files of lines, or rows with the columns of the task"
)
_POPE_NAME = re.compile(r"(?:.*_)?pope_(.+)")


class Content(NamedTuple):
    """What a file holds."""

    kind: str  # "text": lines; "list" and "lines": JSON values; "object": one JSON object
    items: list[Any]
    places: list[str]  # of each item, for messages


class Entry(NamedTuple):
    """An answer or a question of a published file."""

    question: Question
    answer: Answer = Answer()
    has_truth: bool = True  # lm-eval's samples hold both sides


def read_content(path: Path) -> Content:
    """A file as JSON, JSON lines or text. Raises ConfigError."""
    require(not path.is_dir(), f"{path}: a folder; name a file in it, as {path}/answers.jsonl")
    require(path.is_file(), f"{path}: no such file")
    data = path.read_bytes().removeprefix(BOM_UTF8)
    require(data.strip() != b"", f"{path}: the file is empty")
    if path.suffix == ".txt":
        return _text(path, data)
    require(
        path.suffix == ".jsonl" or data.lstrip()[:1] in b"[{",
        f"{path}: neither JSON nor JSONL of objects; a file of lines is named .txt",
    )
    if _is_lines(path, data):
        numbered = enumerate(data.splitlines(), start=1)
        rows = [(number, line) for number, line in numbered if line.strip()]
        items = [parse_json(line, path, number) for number, line in rows]
        return Content("lines", items, [f"{path}:{number}" for number, _ in rows])
    value = parse_json(data, path)
    if isinstance(value, list):
        require(len(value) > 0, f"{path}: an empty list")
        return Content("list", value, [f"{path}[{number}]" for number in range(len(value))])
    return Content("object", [value], [str(path)])


def _is_lines(path: Path, data: bytes) -> bool:
    """Whether a file is JSONL; POPE's question files are, and end in .json."""
    if path.suffix == ".jsonl":
        return True
    try:
        loads(data)
    except NotJSON:
        return b"\n" in data.strip()
    return False


def _text(path: Path, data: bytes) -> Content:
    try:
        # as bytes: in a text, U+2028 and others would end a line too
        lines = [line.decode("utf-8") for line in data.splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from error
    return Content("text", lines, [f"{path}:{number}" for number in range(1, len(lines) + 1)])


def looks_like(path: Path, content: Content) -> str:
    """What a file looks like, for the error that names the known layouts."""
    first = content.items[0] if content.items else None
    kinds = {"list": "a JSON list of", "lines": "JSONL of", "object": "a JSON object of"}
    if isinstance(first, dict):
        names = ", ".join(map(str, list(first)[:6])) + (", ..." if len(first) > 6 else "")
        return f"{path}: {kinds[content.kind]} {{{cut(names, 120)}}}"
    return f"{path}: {kinds.get(content.kind, 'text')} {type(first).__name__}"


# ------------------------------------------------------------------------------------------ answers


def read_published_answers(path: Path, content: Content, language: str) -> list[Entry]:
    """Answers of a file in one of the layouts above.

    Raises:
        ConfigError: another layout, or a line without its keys (named).
    """
    first = content.items[0] if content.items else None
    if content.kind == "text":
        numbered = enumerate(content.items, start=1)
        return [_entry(str(n), language, Answer(line.strip())) for n, line in numbered]
    keys = set(first) if isinstance(first, dict) else set()
    if {"doc_id", "filtered_resps"} <= keys:
        return list(_each(content, language, _sample))
    if keys & set(ID_KEYS) and keys & set(ANSWER_KEYS):
        return list(_each(content, language, _llava_answer))
    if content.kind == "lines" and "question" in keys and keys & set(ANSWER_KEYS):
        return list(_each(content, language, _numbered(itertools.count(1))))
    if content.kind == "object" and isinstance(first, dict):
        outputs = first.get("outputs", first)
        if isinstance(outputs, dict) and all(isinstance(one, str) for one in outputs.values()):
            require(len(outputs) > 0, f"{path}: no answers")
            return [_entry(key, language, Answer(one.strip())) for key, one in outputs.items()]
    raise ConfigError(f"{looks_like(path, content)}; known layouts of answers: {KNOWN_ANSWERS}")


def _each(
    content: Content, language: str, read: Callable[[dict[str, Any], str], Entry]
) -> Iterator[Entry]:
    for item, place in zip(content.items, content.places, strict=True):
        require(isinstance(item, dict), f"{place}: not an object, as the lines before it are")
        try:
            yield read(item, language)
        except KeyError as error:
            raise ConfigError(
                f"{place}: no {quoted(error.args[0], 40)}, which this layout has"
            ) from error
        except (TypeError, IndexError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise ConfigError(f"{place}: {error}") from error
            raise ConfigError(
                f"{place}: not like the lines before it: {type(error).__name__} "
                f"{one_line(str(error), 120)}"
            ) from error


def _entry(
    key: Any,
    language: str,
    answer: Answer | None = None,
    truth: Any = None,
    text: str = "",
    **more: Any,
) -> Entry:
    require(isinstance(key, str | int), f"id {quoted(key, 60)} is neither text nor a number")
    question = Question(str(key), language, (user_turn(text),), (), truth)
    return Entry(question._replace(**more), answer or Answer(), truth is not None)


def _numbered(numbers: Iterator[int]) -> Callable[[dict[str, Any], str], Entry]:
    return lambda item, language: _llava_answer(
        {**item, ID_KEYS[0]: f"{LINE}{next(numbers)}"}, language
    )


def _llava_answer(item: dict[str, Any], language: str) -> Entry:
    text = next((item[key] for key in ANSWER_KEYS if key in item), None)
    key = next((item[key] for key in ID_KEYS if key in item), None)
    require(key is not None, f"no {' or '.join(ID_KEYS)}")
    require(isinstance(text, str), f"no {' or '.join(ANSWER_KEYS)} that is text")
    image = item.get("image", "")
    return _entry(
        key,
        language,
        Answer(str(text).strip()),
        text=str(item.get("question", item.get("prompt", ""))),
        category=str(item.get("category", "")),
        images=(str(image),) if image else (),
    )


def _sample(item: dict[str, Any], language: str) -> Entry:
    """One of lm-eval's samples: it holds question, options, truth and answer."""
    require("target" in item, "no target, the truth of a sample")
    responses, target = item["filtered_resps"], item["target"]
    require(
        isinstance(responses, list) and len(responses) > 0,
        f"filtered_resps {quoted(responses, 60)} is not a list of responses",
    )
    if not isinstance(responses[0], list):
        answer = Answer(str(responses[0]).strip())
        return _entry(item["doc_id"], language, answer, target, _prompt(item))
    pairs = [_pair(one) for one in _arguments(item)]
    require(len(pairs) == len(responses), f"{len(pairs)} options, {len(responses)} responses")
    options = tuple(option for _, option in pairs)
    answer = Answer(log_likelihoods=tuple(float(one[0]) for one in responses))
    return _entry(
        item["doc_id"], language, answer, _index(target, options), pairs[0][0], options=options
    )


def _prompt(item: dict[str, Any]) -> str:
    """What was asked: `input` in lmms-eval's samples, the first argument in lm-eval's."""
    if isinstance(item.get("input"), str):
        return item["input"]
    every = _arguments(item) if item.get("arguments") else []
    return _pair(every[0])[0] if every else ""


def _arguments(item: dict[str, Any]) -> list[Any]:
    """Of each option; old versions write a list, new ones {"gen_args_0": {"arg_0", "arg_1"}}."""
    every = item["arguments"]
    return list(every.values()) if isinstance(every, dict) else list(every)


def _pair(one: Any) -> tuple[str, str]:
    """Context and option of one request."""
    values = list(one.values()) if isinstance(one, dict) else list(one)
    return str(values[0]), str(values[1])


def _index(target: Any, options: tuple[str, ...]) -> int:
    """The right option, which is stored by its number or by its text."""
    text, stripped = str(target).strip(), [option.strip() for option in options]
    if text in stripped:
        return stripped.index(text)
    require(
        text.isdecimal() and int(text) < len(options),
        f"target {quoted(target, 60)} is not one of {len(options)} options",
    )
    return int(text)


# ------------------------------------------------------------------------------------------- truths


def read_published_truth(path: Path, content: Content, language: str) -> list[Entry] | None:
    """Questions with their truth; None for a layout that is not published, such as task rows.

    Raises:
        ConfigError: a line lacks the keys of its layout.
    """
    first = content.items[0] if content.items else None
    keys = set(first) if isinstance(first, dict) else set()
    if content.kind == "text":
        numbered = enumerate(content.items, start=1)
        return [_entry(str(n), language, truth=[line.strip()]) for n, line in numbered]
    if {"question_id", "text", "label"} <= keys:
        match = _POPE_NAME.fullmatch(path.stem)
        category = match[1] if match else ""
        return list(_each(content, language, lambda item, name: _pope(item, name, category)))
    if {"question_id", "text", "category"} <= keys and not keys & {"answer", "label"}:
        return list(_each(content, language, _asked))
    if {"id", "conversations"} <= keys:
        return list(_each(content, language, _conversation))
    if content.kind == "object" and "annotations" in keys:
        inner = content.items[0]["annotations"]
        places = [f"{path} annotations[{number}]" for number in range(len(inner))]
        return list(_each(Content("list", inner, places), language, _annotation))
    if content.kind == "object" and _is_gqa(content.items[0]):
        items = [{"id": key, **one} for key, one in content.items[0].items()]
        places = [f"{path} {key}" for key in content.items[0]]
        return list(_each(Content("list", items, places), language, _gqa))
    return None


def _is_gqa(tree: dict[str, Any]) -> bool:
    return all(
        isinstance(one, dict) and {"question", "answer"} <= one.keys() for one in tree.values()
    )


def _gqa(item: dict[str, Any], language: str) -> Entry:
    images = (str(item["imageId"]),) if "imageId" in item else ()
    return _entry(item["id"], language, truth=item["answer"], text=item["question"], images=images)


def _asked(item: dict[str, Any], language: str) -> Entry:
    images = (str(item["image"]),) if "image" in item else ()
    category = str(item["category"])
    return _entry(
        item["question_id"], language, text=item["text"], category=category, images=images
    )


def _pope(item: dict[str, Any], language: str, category: str) -> Entry:
    images = (str(item["image"]),) if "image" in item else ()
    return _entry(
        item["question_id"],
        language,
        truth=str(item["label"]),
        text=item["text"],
        category=category,
        images=images,
        group=images[0] if images else "",
    )


def _conversation(item: dict[str, Any], language: str) -> Entry:
    """LLaVA's JSON: the last answer is the truth of the question before it."""
    question, answer = item["conversations"][-2:]
    text = question["value"].replace(MARK, "").strip()
    images = (str(item["image"]),) if item.get("image") else ()
    return _entry(item["id"], language, truth=answer["value"].strip(), text=text, images=images)


def _annotation(item: dict[str, Any], language: str) -> Entry:
    truths = [one["answer"] for one in item["answers"]]
    group = str(item.get("image_id", ""))
    category = str(item.get("answer_type", ""))
    return _entry(item["question_id"], language, truth=truths, group=group, category=category)
