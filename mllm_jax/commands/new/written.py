"""Writes records as LLaVA JSON Lines; pictures that are stored inside a source become files."""

import io
import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from mllm_jax.data.records.parse import IMAGE, MARK, Record, Turn

ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


class Writer:
    """The files of a project's data folder."""

    def __init__(self, folder: Path, pictures: Path, root: Path):
        """Takes folders.

        Args:
            folder: gets NAME.jsonl, and images/ if a source holds pictures itself.
            pictures: what `folder`/images is called at the end.
            root: where the image paths of the written records start.
        """
        self._folder, self._pictures, self._root = folder, pictures, root
        self._files: dict[str, TextIO] = {}

    def add(self, name: str, record: Record) -> None:
        """Appends a record to NAME.jsonl."""
        if name not in self._files:
            path = self._folder / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = path.open("w", encoding="utf-8")
        tree = as_llava(record, [self._image(image) for image in record.images])
        self._files[name].write(json.dumps(tree, ensure_ascii=False) + "\n")

    def _image(self, image: str | bytes) -> str:
        path = self._pictures / self._picture(image) if isinstance(image, bytes) else image
        return os.path.relpath(path, self._root)

    def _picture(self, data: bytes) -> str:
        """Writes an encoded picture, once; returns its name."""
        with Image.open(io.BytesIO(data)) as image:
            suffix = (image.format or "image").lower()
        name = f"{blake2b(data, digest_size=16).hexdigest()}.{suffix}"
        path = self._folder / "images" / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return name

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def as_llava(record: Record, images: list[str]) -> dict[str, Any]:
    """A record as `records` reads it back."""
    tree: dict[str, Any] = {"id": record.id, "language": record.language}
    if not record.turns:
        return tree | {"text": record.text}
    if images:
        tree["image"] = images[0] if len(images) == 1 else images
    texts = [part for turn in record.turns for part in turn.parts if part is not IMAGE]
    if any(MARK in str(text) for text in texts):  # a word there, which strings cannot say
        return tree | {"messages": [_typed(turn) for turn in record.turns]}
    turns = [
        {"from": ROLES[turn.role], "value": "".join(_text(part) for part in turn.parts)}
        for turn in record.turns
    ]
    return tree | {"conversations": turns}


def _text(part: Any) -> str:
    return MARK if part is IMAGE else part


def _typed(turn: Turn) -> dict[str, Any]:
    """A turn of typed parts, in which an image brings its own line break."""
    content: list[dict[str, str]] = []
    for part in turn.parts:
        if part is IMAGE:
            content.append({"type": "image"})
            continue
        text = str(part)
        if content and content[-1]["type"] == "image":
            text = text.removeprefix("\n")
        if text:
            content.append({"type": "text", "text": text})
    return {"role": turn.role, "content": content}
