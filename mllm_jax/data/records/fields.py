"""Reads and checks single fields of a raw record: texts, ids, languages, image paths."""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import closest, quoted
from mllm_jax.common.links import is_inside, link_roots
from mllm_jax.data.record_errors import RecordError

_ALLOW = "name the folder that it leads to in data.streams.*.links"
REMEMBERED = 2**16  # pictures: records about the same one need not be adjacent
LONGEST_NAME = 100  # characters of a language's name in a record
LONGEST_PATH = 4096  # characters; Linux's PATH_MAX in bytes, limits.h
# how data URIs begin, and PNG, JPEG, GIF and WebP as base64
_ENCODED = re.compile(r"data:|(iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{40}")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,9}://", re.IGNORECASE)


def expect(condition: bool, code: str, reason: str) -> None:
    """Raises RecordError(code, reason) unless `condition` holds.

    For reasons that cost nothing to write; where one shows a value, `if` and `raise`.
    """
    if not condition:
        raise RecordError(code, reason)


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8. JSON and command lines may bring half surrogate pairs."""
    if text.isascii():  # known without looking
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, location: str) -> None:
    """Raises RecordError "text" for text that is not valid Unicode or contains a NUL byte."""
    if not is_text(text):
        raise RecordError(
            "text", f"{location}: holds half of a surrogate pair, which is not valid text"
        )
    if "\0" in text:
        raise RecordError("text", f"{location}: holds a NUL character")


def check_id(value: Any, name: str = "id") -> None:
    """Raises RecordError unless it is text, a number or None."""
    if type(value) not in (str, int, float, type(None)):
        raise RecordError("field", f"{name} {quoted(value, 60)} is neither text nor a number")
    if isinstance(value, str):
        check_text(value, name)


def is_name(text: str) -> bool:
    """Whether a language may be called so. Half surrogate pairs are not printable either."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()


def read_language(stated: Any, default: str | None, languages: tuple[str, ...]) -> str:
    """The record's own language, else the stream's. Raises RecordError "language"."""
    value = stated if stated is not None else default
    expect(value is not None, "language", "no language: give the record one, or the stream")
    if not isinstance(value, str):
        raise RecordError("language", f"language {quoted(value, 60)} is not text")
    if value not in languages:
        if not is_name(value):
            what = f"is not a name of 1 to {LONGEST_NAME} printable characters"
            raise RecordError("language", f"language {quoted(value, 60)} {what}")
        near = closest(value, languages)
        allowed = ", ".join(languages) or "none"
        hint = f"did you mean {near!r}?" if near else f"allowed are {allowed}"
        raise RecordError(
            "language", f"language {quoted(value, 60)} is not in data.languages; {hint}"
        )
    return value


class ImageFolder:
    """Where the image paths of a stream start.

    It may be a link itself; what is in it may not lead out, but to folders that the config names
    or, in the Hub's cache, to the cache's contents. What was found about a path is remembered,
    since several records may share it.
    """

    def __init__(self, root: Path, links: Sequence[str] = ()):
        self.root, self._root, self._links = root, str(root), tuple(links)
        self._roots = link_roots(root, links)
        self._prefixes = {f"{p.rstrip('/')}/" for p in (os.path.abspath(root), self._roots[0])}
        self.path = lru_cache(REMEMBERED)(self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageFolder, (self.root, self._links)

    def _path(self, name: str) -> str:
        """The path of an image of this name. Raises RecordError where it leaves the folder."""
        _check_path(name)
        inside = next((name[len(p) :] for p in self._prefixes if name.startswith(p)), name)
        parts = [part for part in inside.split("/") if part not in ("", ".")]
        path = os.path.join("" if self._root == "." else self._root, *parts)
        if inside.startswith("/") or not parts:
            reason = f"leaves the image folder; paths start in it, in {self.root}"
            raise RecordError("image_path", f"image {quoted(name)} {reason}")
        linked = self._has_link(parts)
        if (linked or ".." in parts) and not is_inside(path, self._roots):
            way = " by a symbolic link" if linked else ""
            reason = f"leaves the image folder{way}; if that is meant, {_ALLOW}"
            raise RecordError("image_path", f"image {quoted(name)} {reason}")
        return path

    def _has_link(self, parts: list[str]) -> bool:
        """Whether a step of a path is a link. Links are rare, so only then it is resolved."""
        step = self._root
        for part in parts:
            step = f"{step}/{part}"
            if os.path.islink(step):
                return True
        return False


def _check_path(name: str) -> None:
    """Raises RecordError "field" or "image_missing" for what cannot be a path; bounded work."""
    if _ENCODED.match(name) or len(name) > LONGEST_PATH:
        raise RecordError(
            "field",
            f"image {quoted(name, 40)} is encoded text of {len(name)} characters, not a path: "
            "decode it into a file, or into a column of bytes (parquet, arrow, webdataset)",
        )
    if name.strip() == "" or "\0" in name or not is_text(name):
        reason = "is not a path; leave image out where there is none"
        raise RecordError("field", f"image {quoted(name)} {reason}")
    if _ADDRESS.match(name):
        reason = "is an address, not a path: fetch the pictures first"
        raise RecordError("image_missing", f"image {quoted(name)} {reason}")


def read_images(value: Any, folder: ImageFolder) -> tuple[str | bytes, ...]:
    """The images of a record: a path, encoded bytes, {"bytes", "path"}, a list of these, or None.

    Args:
        value: as stored; of {"bytes", "path"} the bytes are taken if there are any.
        folder: where paths start.

    Returns:
        Paths that start with `folder`, and bytes, in their order.

    Raises:
        RecordError: "field", "image_path" or "image_missing".
    """
    items = [] if value is None else value if isinstance(value, list) else [value]
    images = []
    for item in items:
        image = _source(item)
        if image is None:
            reason = "is neither a path nor a list of paths, nor bytes"
            raise RecordError("field", f"image {quoted(value)} {reason}")
        images.append(folder.path(image) if isinstance(image, str) else image)
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
