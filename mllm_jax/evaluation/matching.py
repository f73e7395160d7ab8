"""Matches answers to the questions of a truth, one to one, by id.

Ids that differ are matched by image and question, where both sides hold them: POPE's published
answers number the questions of two of three files in another way than these do. Answers without
ids, as POPE's own program reads them, are matched by order, where all questions are the same.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.evaluation.published import LINE, Entry
from mllm_jax.evaluation.tasks.task import Answer, Question

Key = tuple[str, ...]


def matched(
    entries: Sequence[Entry], questions: Sequence[Question], more: bool = False
) -> list[tuple[Question, Answer]]:
    """Every question of the truth, in its order, with its answer.

    Args:
        entries: the answers.
        questions: the truth.
        more: whether there may be answers to other questions, which the task leaves out.

    Raises:
        ConfigError: answers without a question, questions without an answer, or either twice.
    """
    require(len(entries) > 0, "the file holds no answers")
    entries = _of_these_categories(entries, questions)
    _check_unique(entries)
    by_id, keys = _by_id(entries, questions)
    if more and by_id.keys() > set(keys):
        count = len(by_id) - len(keys)
        print(f"answers to questions that the task leaves out: {count:,}", flush=True)
    elif by_id.keys() != set(keys):
        other, way = _by_text(entries, questions), "image and question"
        if other is None:
            other, way = _by_order(entries, questions), "order, in which all questions are the same"
        if other is None:
            raise _mismatch(by_id.keys(), keys)
        print(f"ids of answers and truth differ: matched by {way}", flush=True)
        by_id, keys = other
    pairs = zip(questions, keys, strict=True)
    return [(question, by_id[key].answer) for question, key in pairs]


def _by_id(
    entries: Sequence[Entry], questions: Sequence[Question]
) -> tuple[dict[Key, Entry], list[Key]]:
    """Answers by id, and the ids of the questions; with their categories, where both name them.

    Raises:
        ConfigError: ids repeat, and one side names no category that tells them apart.
    """
    named = [any(one.category for one in side) for side in (_asked(entries), questions)]
    if all(named):
        by_id = {_full_id(entry.question): entry for entry in entries}
        return by_id, [_full_id(question) for question in questions]
    by_id = {(entry.question.id,): entry for entry in entries}
    require(
        len(by_id) == len(entries),
        "several answers have one id, and the truth names no category; name its file after it, as "
        "coco_pope_random.json",
    )
    keys = [(question.id,) for question in questions]
    without = [_full_id(question)[1:] for question in questions]
    if by_id.keys() != set(keys) and by_id.keys() == set(without):
        keys = without
    require(
        len(set(keys)) == len(keys),
        "several questions of the truth have one id, and the answers name no category; give "
        "one --truth file at a time",
    )
    return by_id, keys


def _asked(entries: Sequence[Entry]) -> list[Question]:
    return [entry.question for entry in entries]


def _full_id(question: Question) -> Key:
    """Category and id; the id of a question of a task may begin with its category."""
    return (question.category, question.id.removeprefix(f"{question.category}/"))


def _check_unique(entries: Sequence[Entry]) -> None:
    counts = Counter(_full_id(entry.question) for entry in entries)
    key, count = counts.most_common(1)[0]
    require(count == 1, f"answers: id {quoted(key[-1], 60)} is given {count} times; keep one")


def _of_these_categories(
    entries: Sequence[Entry], questions: Sequence[Question]
) -> Sequence[Entry]:
    """Answers of the categories that the truth has, where both name theirs."""
    categories = {question.category for question in questions}
    counts = Counter(entry.question.category for entry in entries)
    others = {name: n for name, n in counts.items() if name and name not in categories}
    if "" in categories or not others or categories.isdisjoint(counts):
        return entries
    names = ", ".join(f"{name} ({count:,})" for name, count in others.items())
    print(f"answers of other categories than the truth's are left out: {names}", flush=True)
    return [entry for entry in entries if entry.question.category in categories]


def _by_text(
    entries: Sequence[Entry], questions: Sequence[Question]
) -> tuple[dict[Key, Entry], list[Key]] | None:
    """Matches by category, image and question; None where that is not one to one.

    The question of an answer may have a post-prompt behind it, on a line of its own.
    """
    if not all(entry.question.text and entry.question.images for entry in entries):
        return None
    by_text = {_text_key(entry.question): entry for entry in entries}
    keys = [_text_key(question) for question in questions]
    unique = len(by_text) == len(entries) and len(set(keys)) == len(keys)
    return (by_text, keys) if unique and by_text.keys() == set(keys) else None


def _by_order(
    entries: Sequence[Entry], questions: Sequence[Question]
) -> tuple[dict[Key, Entry], list[Key]] | None:
    """Matches one after the other; None where a question differs, or the answers have ids."""
    if any(not entry.question.id.startswith(LINE) for entry in entries):
        return None
    asked = [_line(question) for question in _asked(entries)]
    if asked != [_line(question) for question in questions]:
        return None
    keys: list[Key] = [(str(number),) for number in range(len(entries))]
    return dict(zip(keys, entries, strict=True)), keys


def _line(question: Question) -> str:
    """The first line: a post-prompt may be behind it."""
    return question.text.split("\n")[0]


def _text_key(question: Question) -> Key:
    return (question.category, *map(str, question.images), _line(question))


def _mismatch(answered: Any, keys: Sequence[Key]) -> ConfigError:
    extra, missing = sorted(answered - set(keys)), [key for key in keys if key not in answered]
    parts = []
    if extra:
        parts.append(f"{len(extra):,} answers have no question (as id {quoted(extra[0][-1], 60)})")
    if missing:
        example = quoted(missing[0][-1], 60)
        parts.append(f"{len(missing):,} of {len(keys):,} questions no answer (as id {example})")
    return ConfigError(
        f"answers and truth differ: {' and '.join(parts)}; give the truth of these questions, or "
        "answer the rest"
    )
