"""Makes our turns and image files of lmms-eval's messages, and messages of our turns.

[{"role": "user", "content": [{"type": "image", "url": PIL image or path},
                              {"type": "text", "text": "Zer da?"}]}]
Turn("user", (IMAGE, "\\n", "Zer da?")), and the image as bytes or its path
"""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.data.records.parse import IMAGE, MARK, Mark, Turn
from mllm_jax.generation.opened import File

ROLES = ("system", "user", "assistant")
# modes that PNG stores; our decoder would make the others RGB too
STORED = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def from_messages(messages: Sequence[Any], name: str) -> tuple[list[Turn], tuple[File, ...]]:
    """Turns and their images; a line break follows each image, as `records.user_turn` writes it.

    Args:
        messages: a content is a text, or a list of parts.
        name: what errors call the document.

    Raises:
        ConfigError: an unknown role, a part that is neither text nor image, or an image of another
            than the user.
    """
    turns: list[Turn] = []
    images: list[File] = []
    for message in messages:
        role, content = message["role"], message["content"]
        require(role in ROLES, f"{name}: role {quoted(role, 40)} is not one of {', '.join(ROLES)}")
        parts: list[str | Mark] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                parts.append(part["text"])
                continue
            require(
                part["type"] == "image",
                f"{name}: {quoted(part['type'], 40)} cannot be read: the model reads images and "
                "text",
            )
            require(role == "user", f"{name}: the {role}'s message has an image")
            images.append(file_of(part["url"], name))
            parts += [IMAGE, "\n"]
        turns.append(Turn(role, tuple(parts)))
    return turns, tuple(images)


def from_context(
    context: str, visuals: Sequence[Any] | None, name: str
) -> tuple[list[Turn], tuple[File, ...]]:
    """As `from_messages`, of a text and its images: these are first, or at the text's `<image>`."""
    images = list(visuals or ())
    texts = context.split(MARK) if images else [context]
    content: list[dict[str, Any]] = []
    if len(texts) == len(images) + 1:
        for text, image in zip(texts, [*images, None], strict=True):
            # a line break behind the mark is the one that follows every image
            text = text.removeprefix("\n") if content else text
            content += [{"type": "text", "text": text}] if text else []
            content += [] if image is None else [{"type": "image", "url": image}]
    else:
        content = [{"type": "image", "url": image} for image in images]
        content.append({"type": "text", "text": context})
    return from_messages([{"role": "user", "content": content}], name)


def to_messages(turns: Sequence[Turn], images: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages that `from_messages` makes the turns of."""
    rest = iter(images)
    messages = []
    for turn in turns:
        content: list[dict[str, Any]] = []
        after_image = False
        for part in turn.parts:
            if isinstance(part, Mark):
                content.append({"type": "image", "url": next(rest)})
            elif text := part.removeprefix("\n") if after_image else part:
                content.append({"type": "text", "text": text})
            after_image = isinstance(part, Mark)
        messages.append({"role": turn.role, "content": content})
    return messages


def file_of(image: Any, name: str) -> File:
    """An image as a file's path, or as encoded bytes with the same pixels.

    Raises:
        ConfigError: it is not an image: a video, a sound.
    """
    if isinstance(image, str | bytes):
        return image
    if not isinstance(image, Image.Image):
        raise ConfigError(f"{name}: {quoted(image, 60)} is not an image; the model reads no other")
    if image.mode not in STORED:
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, exif=image.getexif())
    return file.getvalue()
