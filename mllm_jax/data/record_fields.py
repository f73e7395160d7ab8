"""Single fields of a raw record -> checked values. Behind `records`, on the way of the data."""

import difflib
import os
import reprlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from mllm_jax.data.faults import Fault

REMEMBERED = 2**16  # pictures: records about one need not stand side by side


def expect(condition: bool, code: str, reason: str) -> None:
    """Raises Fault(code, reason) unless `condition` holds.

    For reasons that cost nothing to write; where one shows a value, `if` and `raise`.
    """
    if not condition:
        raise Fault(code, reason)


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8. JSON and command lines may bring half surrogate pairs."""
    if text.isascii():  # known without looking
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, where: str) -> None:
    """Refuses what is no text, or would end it for others. Raises Fault "text"."""
    if not is_text(text):
        raise Fault("text", f"{where}: holds half of a surrogate pair, which is no text")
    if "\0" in text:
        raise Fault("text", f"{where}: holds a NUL character")


def check_id(value: Any) -> None:
    """Raises Fault unless it is text, a number or None."""
    if type(value) not in (str, int, float, type(None)):
        raise Fault("field", f"id {value!r:.60} is neither text nor a number")
    if isinstance(value, str):
        check_text(value, "id")


def read_language(own: Any, default: str | None, languages: tuple[str, ...]) -> str:
    """The record's own language, else the stream's. Raises Fault "language"."""
    value = own if own is not None else default
    expect(value is not None, "language", "no language: give the record one, or the stream")
    if not isinstance(value, str):
        raise Fault("language", f"language {value!r:.60} is not text")
    if value not in languages:
        near = difflib.get_close_matches(value, languages, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(languages)}"
        raise Fault("language", f"language {value!r:.60} is not in data.languages; {hint}")
    return value


class ImageFolder:
    """Where the image paths of a stream start.

    It may be a link itself; what lies in it may not lead out. What was found about a path is
    remembered, since several records may share it.
    """

    def __init__(self, root: Path):
        self.root, self._root = root, str(root)
        self.path = lru_cache(REMEMBERED)(self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageFolder, (self.root,)

    def _path(self, name: str) -> str:
        """The path of an image of this name. Raises Fault where it leaves the folder."""
        if name.strip() == "" or "\0" in name or not is_text(name):
            raise Fault("field", f"image {name!r} is no path; leave image out where there is none")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise Fault("image_path", f"image {name!r} leaves the image folder")
        if self._leads_out(parts):
            raise Fault("image_path", f"image {name!r} leaves the image folder by a symbolic link")
        return os.path.join("" if self._root == "." else self._root, *parts)

    def _leads_out(self, parts: list[str]) -> bool:
        """Whether a link in the folder leads out. Links are rare, so each step is asked first."""
        step = self._root
        for part in parts:
            step = f"{step}/{part}"
            if os.path.islink(step):
                root = os.path.realpath(self._root)
                whole = os.path.realpath(os.path.join(self._root, *parts))
                return os.path.commonpath((whole, root)) != root
        return False


def read_images(value: Any, folder: ImageFolder) -> tuple[str | bytes, ...]:
    """The images of a record: a path, encoded bytes, {"bytes", "path"}, a list of these, or None.

    Args:
        value: as stored; of {"bytes", "path"} the bytes are taken if there are any.
        folder: where paths start.

    Returns:
        Paths that start with `folder`, and bytes, in their order.

    Raises:
        Fault: "field", "image_path" or "image_missing".
    """
    items = [] if value is None else value if isinstance(value, list) else [value]
    images = []
    for item in items:
        found = _source(item)
        if found is None:
            shown = reprlib.repr(value)
            raise Fault("field", f"image {shown} is neither a path nor a list of paths, nor bytes")
        images.append(folder.path(found) if isinstance(found, str) else found)
    return tuple(images)


def _source(item: Any) -> str | bytes | None:
    """The path or the bytes; None for anything else."""
    if not isinstance(item, dict):
        return item if isinstance(item, str | bytes) else None
    if not item.keys() <= {"bytes", "path"}:
        return None
    data, path = item.get("bytes"), item.get("path")
    expect(
        data is not None or path is not None,
        "image_missing",
        "no such image: neither bytes nor a path are stored",
    )
    chosen = data if data or path is None else path
    return chosen if isinstance(chosen, str | bytes) else None
