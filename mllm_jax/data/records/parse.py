"""Parses and checks raw records, one by one.

A conversation has one of three shapes: as LLaVA writes it, as transformers writes it, and as
`layouts` makes it of questions and answers, images first in the first question:

    {"id": "7", "image": "a.png", "language": "eu",
     "conversations": [{"from": "human", "value": "<image>\\nZer da?"},
                       {"from": "gpt", "value": "Katu bat."}]}
    {"id": "8", "image": ["a.png", "b.png"], "language": "eu",
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
                                               {"type": "text", "text": "Zer da?"}]},
                  {"role": "assistant", "content": "Bi katu."}]}
    {"id": "9", "image": "a.png", "language": "eu", "rounds": [("Zer da?", "Katu bat.")]}

In a user's *string*, every `<image>` stands for the next image. Everywhere else (answers, system
texts, typed text parts) text is text, whatever it looks like.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from mllm_jax.common.errors import quoted
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import ImageFolder, check_text, expect, read_images, read_language
from mllm_jax.data.records.fields import is_text as is_text  # for commands

MARK = "<image>"  # the place of an image in a user's string
# Characters of one conversation: twice what 131,072 tokens, the most a row of Llama 3.1 can have,
# hold of English (4 a token). Refused before it is tokenised, which takes seconds a megabyte.
MOST_TALKED = 2**20
MOST_WRITTEN = 2**24  # characters of a document, which is cut into rows


class Mark(enum.Enum):
    """The place of an image among the parts of a turn."""

    IMAGE = "image"


IMAGE = Mark.IMAGE


class Turn(NamedTuple):
    """One turn of a conversation. Strings are literal text; only user turns have images."""

    role: str  # "system", "user" or "assistant"
    parts: tuple[str | Mark, ...]


class Record(NamedTuple):
    """One conversation: an optional system turn, then user and assistant in alternation.

    Or one document, which has no turns.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str | bytes, ...]  # paths or encoded images, in the order of the IMAGE parts
    language: str
    text: str = ""  # of a document


def trained_texts(record: Record) -> list[str]:
    """What a record trains: a document's text, or the texts of a conversation's answers."""
    if not record.turns:
        return [record.text]
    answers = [turn.parts for turn in record.turns if turn.role == "assistant"]
    return [part for parts in answers for part in parts if isinstance(part, str)]


def user_turn(text: str, images: int = 0) -> Turn:
    """A user's turn, images first, each on a line of its own, as LLaVA's templates write them."""
    return Turn("user", (*(IMAGE, "\n") * images, text))


# -------------------------------------------------------------------------------- object -> record


def read_record(
    raw: Any, key: str, folder: ImageFolder, language: str | None, languages: tuple[str, ...]
) -> Record:
    """A raw record, see the top of this file, checked and taken apart.

    Args:
        raw: a conversation; or a document, {"id": "9", "text": "Kaixo.", "language": "eu"}.
        key: the record's id; raw's own was looked at by `columns`.
        folder: where image paths start.
        language: of records that do not name their own.
        languages: every language a record may have.

    Raises:
        RecordError: with the first thing that is wrong. Image files are not looked at.
    """
    if not isinstance(raw, dict):
        raise RecordError("field", f"expected an object, found {type(raw).__name__}")
    if "text" in raw:
        return _document(raw["text"], key, read_language(raw.get("language"), language, languages))
    images = read_images(raw.get("image"), folder)
    if "rounds" in raw:
        turns = _rounds(raw["rounds"], len(images))
    else:
        turns = _turns(raw)
        _check_order(turns)
        _check_marks(raw, turns, len(images))
    _check_size(turns)
    return Record(key, turns, images, read_language(raw.get("language"), language, languages))


def _check_marks(raw: dict[str, Any], turns: tuple[Turn, ...], images: int) -> None:
    marks = sum(part is IMAGE for turn in turns for part in turn.parts)
    if marks == images:
        return
    hint = ""
    if images == 0 and any(
        isinstance(turn.get("content"), list) for turn in raw.get("messages", [])
    ):
        hint = "; write their paths under the record's `image`, in their order"
    elif images == 0:
        hint = f"; write its path under `image`, or, where {MARK} is a word, typed parts of text"
    elif marks == 0:
        hint = f"; write {MARK} at the place of each"
    raise RecordError("image_count", f"{marks} {MARK} in user turns, but {images} images{hint}")


def _check_size(turns: tuple[Turn, ...]) -> None:
    size = 0
    for _, parts in turns:
        for part in parts:
            size += 0 if part is IMAGE else len(part)  # type: ignore[arg-type]
    if size > MOST_TALKED:
        raise RecordError(
            "too_long", f"{size} characters in one conversation, more than {MOST_TALKED}"
        )


def _document(text: Any, key: str, language: str) -> Record:
    if not isinstance(text, str):
        raise RecordError("field", f"text {quoted(text, 60)} is not text")
    if len(text) > MOST_WRITTEN:
        reason = f"{len(text)} characters in one document, more than {MOST_WRITTEN}; split it"
        raise RecordError("too_long", reason)
    check_text(text, "text")
    expect(text.strip() != "", "empty_answer", "the text is empty")
    return Record(key, (), (), language, text)


def _rounds(rounds: Sequence[tuple[Any, Any]], images: int) -> tuple[Turn, ...]:
    """Turns of questions and answers. A question may be empty where there is an image."""
    expect(len(rounds) > 0, "field", "no question and no answer")
    turns: list[Turn] = []
    image_parts: tuple[str | Mark, ...] = (IMAGE, "\n") * images
    for question, answer in rounds:
        number = len(turns) + 1
        _check_string(question, "question", number)
        _check_string(answer, "answer", number + 1)
        if not answer.strip():
            raise RecordError("empty_answer", f"turn {number + 1}: the answer is empty")
        asked = (*image_parts, question) if question or not image_parts else image_parts
        turns += Turn("user", asked), Turn("assistant", (answer,))
        image_parts = ()
    return tuple(turns)


def _check_string(text: Any, name: str, number: int) -> None:
    if not isinstance(text, str):
        raise RecordError("field", f"turn {number}: {name} {quoted(text, 60)} is not text")
    check_text(text, f"turn {number}")


def _turns(raw: dict[str, Any]) -> tuple[Turn, ...]:
    present = [field for field in ("conversations", "messages") if field in raw]
    reason = "give either conversations or messages" + (", not both" if present else "")
    expect(len(present) == 1, "field", reason)
    items = raw[present[0]]
    is_list = isinstance(items, list) and len(items) > 0
    expect(is_list, "field", f"{present[0]} is not a list of turns")
    if present[0] == "conversations":
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        return tuple(
            _turn(item, "from", "value", roles, n) for n, item in enumerate(items, start=1)
        )
    roles = {"user": "user", "assistant": "assistant", "system": "system"}
    return tuple(_turn(item, "role", "content", roles, n) for n, item in enumerate(items, start=1))


def _turn(item: Any, who: str, what: str, roles: dict[str, str], number: int) -> Turn:
    location = f"turn {number}"
    if not isinstance(item, dict):
        raise RecordError("field", f"{location}: expected an object, found {type(item).__name__}")
    name = item.get(who)
    if not (isinstance(name, str) and name in roles):
        raise _no_role(item, who, name, roles, location)
    role, content = roles[name], item.get(what)
    if isinstance(content, str):
        parts = _split(content) if role == "user" else (content,)
    elif what == "content" and isinstance(content, list):
        parts = _typed(content, role, location)
    else:
        raise RecordError("field", f"{location}: {what} {quoted(content, 60)} is not text")
    for part in parts:
        if part is not IMAGE:
            check_text(part, location)
    return Turn(role, parts)


def _no_role(
    item: dict[str, Any], who: str, name: Any, roles: dict[str, str], location: str
) -> RecordError:
    """Names the role, or the list under which turns with these keys are read."""
    for other, (role_key, text_key) in {
        "messages": ("role", "content"),
        "conversations": ("from", "value"),
    }.items():
        if name is None and role_key != who and role_key in item and text_key in item:
            keys = f"{role_key!r} and {text_key!r}"
            reason = f"{location}: no {who!r}; turns of {keys} belong under {other}"
            return RecordError("role", reason)
    return RecordError(
        "role", f"{location}: {who} {quoted(name, 60)}; allowed are {', '.join(roles)}"
    )


def _split(text: str) -> tuple[str | Mark, ...]:
    """ "<image>\\nZer da?" -> (IMAGE, "\\nZer da?")."""
    parts: list[str | Mark] = []
    for n, piece in enumerate(text.split(MARK)):
        parts += [IMAGE] if n else []
        parts += [piece] if piece else []
    return tuple(parts)


def _typed(content: list[Any], role: str, location: str) -> tuple[str | Mark, ...]:
    """Typed parts; an image takes a line of its own, as in LLaVA's templates on Hugging Face."""
    parts: list[str | Mark] = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "image":
            reason = f"{location}: an image in a turn of role {role}; only user turns have images"
            expect(role == "user", "field", reason)
            parts += [IMAGE, "\n"]
        elif kind == "text" and isinstance(item.get("text"), str):
            parts.append(item["text"])
        else:
            raise RecordError(
                "field", f"{location}: part {quoted(item, 60)} is neither an image nor text"
            )
    return tuple(parts)


def _check_order(turns: tuple[Turn, ...]) -> None:
    """system? (user assistant)+, with something in every answer."""
    spoken = turns[1:] if turns[0].role == "system" else turns
    expect(len(spoken) > 0, "role_order", "only a system turn")
    skipped = len(turns) - len(spoken)
    for n, turn in enumerate(spoken, start=1):
        expected = "user" if n % 2 else "assistant"
        if turn.role != expected:
            reason = f"turn {n + skipped}: found {turn.role}, expected {expected}"
            raise RecordError("role_order", reason)
        if expected == "assistant" and not any(
            isinstance(p, str) and p.strip() for p in turn.parts
        ):
            raise RecordError("empty_answer", f"turn {n + skipped}: the answer is empty")
    expect(spoken[-1].role == "assistant", "role_order", "the last turn is not an answer")
