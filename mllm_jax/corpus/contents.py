"""Reads pictures and texts out of any row, whatever its columns are called.

Training data and benchmarks have dozens of layouts. What is compared needs no roles: every text in
a row is a text, and every picture a picture.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mllm_jax.common.errors import require
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.index.stream import image_folder
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import ImageFolder, read_images
from mllm_jax.data.sources.base import Row, Source
from mllm_jax.data.sources.kinds import kind_of, open_source

# columns whose texts are paths: image, images, image_3, img_path, and WebDataset's extensions
_IMAGES = re.compile(
    r"(image|img|picture|photo)s?(_?\d+)?(_?(path|file|filename)s?)?|file_?name|"
    r"jpe?g|png|webp|avif|gif|bmp|tiff?"
)
_IDS = ("id", "__key__", "question_id", "index")
_LABELS = {*_IDS, "language", "from", "role", "type"}  # columns whose texts are not compared
UNKNOWN = "und"  # ISO 639-3, undetermined: the language of a row that names none


class Contents(NamedTuple):
    """What is compared of a row."""

    id: str
    language: str
    images: tuple[str | bytes, ...]  # paths, or encoded images
    texts: tuple[str, ...]


class DataSet(NamedTuple):
    """A file or folder of rows, and the folder in which its image paths start."""

    path: Path
    kind: str
    source: Source
    folder: ImageFolder

    def read(self, number: int) -> Contents:
        """A row's contents. Raises RecordError when it cannot be read."""
        return contents(self.source[number], number, self.folder)


def open_data_set(path: Path, images: Path | None = None) -> DataSet:
    """Opens a file, or a folder of shards, by its suffix.

    Args:
        path: JSON, JSONL, Parquet, Arrow, ArrayRecord, WebDataset or text.
        images: where image paths start; None: the folder of `path`.

    Raises:
        ConfigError: nothing is there, or it cannot be read.
    """
    require(path.exists(), f"{path}: no such file or folder")
    kind: Any = kind_of(path)
    stream = StreamConfig(
        str(path), images=None if images is None else str(images), kind=kind, split=_split(kind)
    )
    source, folder = open_source(stream), image_folder(stream)
    require(len(source) > 0, f"{path}: no records")
    require(folder.is_dir(), f"{folder}: no such folder of images")
    return DataSet(path, kind, source, ImageFolder(folder))


def _split(kind: str) -> str | None:
    """Every split of a folder is read: what is compared may be in any."""
    return None if kind in ("json", "text") else "all"


def contents(row: Row, number: int, folder: ImageFolder) -> Contents:
    """Pictures and texts of a row, those inside lists and objects too.

    Raises:
        RecordError: an image is not a path that can be used, nor bytes.
    """
    images: list[str | bytes] = []
    texts: list[str] = []
    for is_image, value in _walk(row, ""):
        if is_image:
            images += read_images(value, folder)
        else:
            texts.append(value)
    names = (row.get(name) for name in _IDS)
    key = next((str(value) for value in names if isinstance(value, str | int)), str(number))
    language = row.get("language")
    return Contents(
        key, language if isinstance(language, str) else UNKNOWN, tuple(images), tuple(texts)
    )


def _walk(value: Any, column: str) -> Iterator[tuple[bool, Any]]:
    """(whether it is an image, the image as stored or a text) of all that is in a value."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        if value and value.keys() <= {"bytes", "path"}:
            yield True, value
            return
        for name, inside in value.items():
            yield from _walk(inside, str(name))
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _walk(inside, column)
    elif isinstance(value, str):
        if column not in _LABELS:
            yield _is_image(column), value
    elif isinstance(value, bytes):
        if _is_image(column):
            yield True, value
        else:
            try:
                yield False, value.decode("utf-8")
            except UnicodeDecodeError:  # sound, features: nothing that is compared
                return


def _is_image(column: str) -> bool:
    return _IMAGES.fullmatch(column.lower()) is not None


def stamp(image: str | bytes) -> bytes:
    """What changes with an image: of a file path, size and time, of bytes the bytes.

    Raises:
        RecordError: no such file.
    """
    if isinstance(image, bytes):
        return image
    try:
        status = os.stat(image)
    except OSError as error:
        raise RecordError("image_missing", f"{image}: no such image file") from error
    return f"{image}\0{status.st_size}\0{status.st_mtime_ns}".encode()
