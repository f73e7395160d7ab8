"""Converts turns to messages for a chat template, with one private-use character for each text.

    turns      user (IMAGE, "\\n Zer da? ")         assistant ("Katu bat.",)
    messages   user "<image>①"                      assistant "②"              as strings
               user [image, " ① "]                  assistant ["②"]            as typed parts
    texts      ① "\\n Zer da?" (typed: "Zer da?")   ② "Katu bat."

White space at the ends of a content stays in the message, outside of the sentinel: what comes out
tells whether the template trims it (`kept_space`).
"""

import enum
import re
from collections.abc import Sequence
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.data.records.parse import IMAGE, Mark, Turn

FIRST = 0xF0000  # Supplementary Private Use Area-A: no template writes these
SENTINELS = "[\U000f0000-\U000ffffd]"  # as a regular expression
_SENTINEL = re.compile(f"({SENTINELS})")
Messages = list[dict[str, Any]]


class Placeholder(enum.Enum):
    """The place of a text in a shape."""

    TEXT = "text"


TEXT = Placeholder.TEXT
_PICTURE = (IMAGE, "\n")  # see `records.user_turn`
# of every turn its role, then images, texts and the white space around the whole
Shape = tuple[tuple[str | Mark | Placeholder, ...], ...]


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
        if parts == _PICTURE:  # nearly always where a picture has a caption
            shape.append((role, IMAGE, "", TEXT, "\n"))
            texts.append("")
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


def outer_space(shape: Shape) -> list[tuple[str, str]]:
    """White space before and after each text."""
    return [
        (str(pieces[i - 1]), str(pieces[i + 1]))
        for _, *pieces in shape
        for i, piece in enumerate(pieces)
        if piece is TEXT
    ]


def without_space(shape: Shape) -> Shape:
    """The shape of the same turns, trimmed."""
    bare = []
    for role, *pieces in shape:
        bare.append((role, *(p if isinstance(p, Mark | Placeholder) else "" for p in pieces)))
    return tuple(bare)


def kept_space(
    bare: str, spaced: str, space: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...] | None:
    """White space around each text that a template leaves there.

    Args:
        bare: rendering of the trimmed shape.
        spaced: rendering of the shape itself.
        space: white space before and after each text in the shape.

    Returns:
        Of `space` what is left; None if the renderings differ in anything else.
    """
    first, second = (_SENTINEL.split(text) for text in (bare, spaced))
    if first[1::2] != second[1::2]:
        return None
    left = [["", ""] for _ in space]
    numbers = [None, *(ord(sentinel) - FIRST for sentinel in first[1::2]), None]
    for n, (plain, wide) in enumerate(zip(first[::2], second[::2], strict=True)):
        before, behind = numbers[n], numbers[n + 1]  # texts beside this piece of the template
        ends = ("",) if before is None else ("", space[before][1])
        starts = ("",) if behind is None else ("", space[behind][0])
        fits = [(e, s) for e in ends for s in starts if e + plain + s == wide]
        if not fits:
            return None
        if before is not None:
            left[before][1] = fits[0][0]
        if behind is not None:
            left[behind][0] = fits[0][1]
    return tuple((a, b) for a, b in left)


def with_texts(messages: Messages, texts: Sequence[str]) -> Messages:
    """Messages with the texts themselves in place of their sentinels."""
    table = {FIRST + n: text for n, text in enumerate(texts)}
    filled: Messages = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = content.translate(table)
        else:
            parts = [
                part | {"text": part["text"].translate(table)} if "text" in part else part
                for part in content
            ]
            content = parts
        filled.append(message | {"content": content})
    return filled


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
