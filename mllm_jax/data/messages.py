"""Turns -> messages for a chat template, in which one private-use character stands for each text.

    turns      user (IMAGE, "\\n Zer da? ")         assistant ("Katu bat.",)
    messages   user "<image>①"                      assistant "②"              as strings
               user [image, " ① "]                  assistant ["②"]            as typed parts
    texts      ① "\\n Zer da?" (typed: "Zer da?")   ② "Katu bat."

White space at the ends of a content stays in the message: a template that trims does trim it.
"""

import enum
from collections.abc import Sequence
from typing import Any

from mllm_jax.data.records import IMAGE, Mark, Turn
from mllm_jax.errors import require

FIRST = 0xF0000  # Supplementary Private Use Area-A: no template writes these
SENTINELS = "[\U000f0000-\U000ffffd]"  # as a regular expression
Messages = list[dict[str, Any]]


class Hole(enum.Enum):
    """The place of a text in a shape."""

    TEXT = "text"


TEXT = Hole.TEXT
# of every turn its role, then images, texts and the white space around the whole
Shape = tuple[tuple[str | Mark | Hole, ...], ...]


def take_texts(turns: Sequence[Turn]) -> tuple[Shape, list[str]]:
    """What is left of turns without their texts, and the texts.

    user (IMAGE, "\\nZer da? "), assistant ("Bat.",)
        -> (("user", IMAGE, "", TEXT, " "), ("assistant", "", TEXT, "")), ["\\nZer da?", "Bat."]
    """
    shape: list[tuple[Any, ...]] = []
    texts: list[str] = []
    for role, parts in turns:
        if len(parts) == 1 and (text := parts[0]) is not IMAGE and text and text == text.strip():
            shape.append((role, "", TEXT, ""))  # nearly always
            texts.append(text)
            continue
        parts = _merged(parts)
        pieces: list[Any] = [role]
        for n, part in enumerate(parts or ("",)):
            if part is IMAGE:
                pieces.append(part)
                continue
            before, core, after = _outer_space(part, n == 0, n == len(parts) - 1)
            pieces += before, TEXT, after
            texts.append(core)
        shape.append(tuple(pieces))
    return tuple(shape), texts


def roles_of_texts(shape: Shape) -> list[str]:
    """Who says each text."""
    return [str(role) for role, *pieces in shape for piece in pieces if piece is TEXT]


def as_strings(shape: Shape, mark: str) -> Messages:
    """Messages whose content is one string: sentinels for texts, `mark` for images.

    Raises:
        ConfigError: there is an image but `mark` is empty, so the model reads none.
    """
    messages: Messages = []
    texts = 0
    for role, *pieces in shape:
        content = ""
        for piece in pieces:
            if piece is IMAGE:
                require(mark != "", "the conversation has an image, but the model reads no images")
                content += mark
            elif piece is TEXT:
                content += _sentinel(texts)
                texts += 1
            else:
                content += str(piece)
        messages.append({"role": role, "content": content})
    return messages


def as_parts(turns: Sequence[Turn]) -> tuple[Messages, list[str], list[str]]:
    """Messages of typed parts, their texts, and who says each.

    The template itself breaks the line after an image, so ours goes.
    """
    messages: Messages = []
    texts: list[str] = []
    roles: list[str] = []
    for turn in turns:
        content: list[dict[str, str]] = []
        after_image = False
        for part in _merged(turn.parts):
            if part is IMAGE:
                content.append({"type": "image"})
            else:
                text = part.removeprefix("\n") if after_image else part
                before, core, after = _outer_space(text, True, True)
                if text:
                    written = before + _sentinel(len(texts)) + after
                    content.append({"type": "text", "text": written})
                    texts.append(core)
                    roles.append(turn.role)
            after_image = part is IMAGE
        messages.append({"role": turn.role, "content": content})
    return messages, texts, roles


def says_the_same_typed(turn: Turn) -> bool:
    """Whether typed parts say what the string says: a line break, or the end, after every image."""
    parts = _merged(turn.parts)
    return all(
        part is not IMAGE or (isinstance(after, str) and after.startswith("\n"))
        for part, after in zip(parts, [*parts[1:], "\n"], strict=False)
    )


def count_images(turns: Sequence[Turn]) -> int:
    """Images in a conversation."""
    return sum(part is IMAGE for turn in turns for part in turn.parts)


def _sentinel(number: int) -> str:
    require(number < 0xFFFD, "the conversation has more than 65,000 texts")
    return chr(FIRST + number)


def _outer_space(text: str, first: bool, last: bool) -> tuple[str, str, str]:
    """(space before, text, space after); inside a content, space belongs to the text."""
    core = text.lstrip() if first else text
    before = text[: len(text) - len(core)]
    trimmed = core.rstrip() if last else core
    return before, trimmed, core[len(trimmed) :]


def _merged(parts: Sequence[Any]) -> list[Any]:
    """Neighbouring texts as one; empty ones vanish."""
    merged: list[Any] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return merged
