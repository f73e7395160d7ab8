"""Reads the rows of a task: prepared from the Hub, or a file beside a task file.

ROOT/lmms-lab--POPE/  hub.json  data/test-00000-of-00003.parquet ...
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from mllm_jax.common.errors import ConfigError, one_line, quoted, require
from mllm_jax.common.json_file import read_json
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.images import decode
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import ImageFolder, read_images
from mllm_jax.data.sources.base import Source
from mllm_jax.data.sources.hub import NOTE
from mllm_jax.data.sources.kinds import open_source
from mllm_jax.evaluation.tasks.data import Data

ROOT = Path("data/tasks")  # where `prepare --task` puts data by default
FILES = Path(__file__).with_name("files")  # the tasks that are shipped
COLUMNS = 12  # of a row that a message names


class Row:
    """One row with the names of a task for its columns."""

    def __init__(
        self,
        task: str,
        values: Mapping[str, Any],
        columns: Mapping[str, str],
        location: str,
        number: int,
    ):
        self.location, self.number, self._task = location, str(number), task
        self._values, self._columns = values, columns

    def has(self, name: str) -> bool:
        """Whether the row has something under a task's name."""
        value = self._lookup(name)
        return value is not None and value != "" and value != []

    def lacks(self, name: str) -> bool:
        """Whether the task states a column for its name that the row does not have at all."""
        column = self._columns.get(name)
        return column is not None and column.split(".")[0] not in self._values

    def value(self, name: str) -> Any:
        """What is stored. Raises ConfigError where the column is missing or empty."""
        value = self._lookup(name)
        if value is None:
            column = self._columns.get(name, name)
            names = ", ".join(list(self._values)[:COLUMNS])
            raise ConfigError(
                f"{self.location}: no column {column!r}, the {name} of task {self._task}; the row "
                f"has {names}; name the right one in a task file (from: {self._task}, columns: ...)"
            )
        return value

    def text(self, name: str) -> str:
        """A text, or a number as text."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.refuse(name, value, "text")
        return str(value)

    def optional(self, name: str) -> str:
        """As `text`; "" where there is none."""
        return self.text(name) if self.has(name) else ""

    def texts(self, name: str) -> list[str]:
        """A list of texts; some sets store it as Python writes it, in one text."""
        return self.checked_texts(name, self.value(name))

    def checked_texts(self, name: str, value: Any) -> list[str]:
        """`value` as a list of texts, see `texts`."""
        value = literal(self, name, value) if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(name, value, "a list of texts")
        return value

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Raises ConfigError: the row, the column, its value, what is expected."""
        column = self._columns.get(name, name)
        raise ConfigError(f"{self.location}: {column}={quoted(value, 60)} is not {expected}")

    def _lookup(self, name: str) -> Any:
        """ "it.caption" is the key `caption` of the column `it`, unless a column is called so."""
        column = self._columns.get(name, name)
        if column in self._values:
            return self._values[column]
        value: Any = self._values
        for part in column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Rows:
    """The rows of a language of a task, in their order."""

    task: str
    language: str
    data: Data
    columns: Mapping[str, str]
    root: Path

    def __iter__(self) -> Iterator[tuple[Row, str]]:
        """Rows, with the split that is their category, or "".

        Raises:
            ConfigError: the data are not prepared, or cannot be read.
        """
        for split in self.data.categories or (self.data.split,):
            source = self._open(self._path, split)
            for number in range(len(source)):
                values = read_row(source, number)
                if all(str(values.get(name)) == one for name, one in self.data.only.items()):
                    row = Row(self.task, values, self._columns, source.location(number), number)
                    yield row, split if self.data.categories and split else ""

    @cached_property
    def _columns(self) -> dict[str, str]:
        columns = {**self.columns, **self.data.columns}
        return {name: one.replace("{language}", self.language) for name, one in columns.items()}

    @cached_property
    def _path(self) -> Path:
        return self._prepared(self.data.hub, self.data.revision, self.data.path)

    def _prepared(self, hub: str | None, revision: str | None, path: str | None) -> Path:
        """Where rows are: in the prepared folder of a data set, else in `root` or at a path."""
        if hub is None:
            return self.root / (path or "")
        folder = self.root / hub_folder(hub)
        shipped = (FILES / f"{self.task}.yaml").is_file()
        name = self.task if shipped else f"{self.task}.yaml"  # the file that is named after it
        command = f"mllm-jax prepare --task {name} --language {self.language}"
        command += f" --folder {self.root}" if self.root != ROOT else ""
        note = folder / NOTE
        require(
            note.is_file(), f"task {self.task}: {hub} is not in {self.root}; fetch it by: {command}"
        )
        stored = read_json(note)
        require(
            stored.get("hub") == hub and revision in (None, stored.get("revision")),
            f"{folder}: holds {quoted(stored)}, and task {self.task} needs {hub} at {revision}; "
            f"move it away and fetch: {command}",
        )
        return folder / path if path else folder

    def _open(self, path: Path, split: str | None) -> Source:
        require(
            path.exists(),
            f"task {self.task}: {path}: no such file or folder; data.{self.language}.path names it",
        )
        kind, images = _kind(path), self.data.images
        skip = str(path / images) if images and path.is_dir() else None
        stream = StreamConfig(
            str(path), images=skip, kind=kind, split=None if kind == "json" else split
        )
        return open_source(stream)

    @cached_property
    def image_folder(self) -> ImageFolder:
        """Where image paths start."""
        folder = self._path if self._path.is_dir() else self._path.parent
        if self.data.images is not None:
            folder = folder / self.data.images
            require(folder.is_dir(), f"data.{self.language}.images: {folder}: no such folder")
        return ImageFolder(folder)

    def images(self, row: Row, names: Sequence[str]) -> tuple[str | bytes, ...]:
        """The images in columns of a row, in order; empty columns are left out.

        Raises:
            ConfigError: a value is not an image, or a key is not in the table of images.
        """
        values = [row.value(name) for name in names if row.has(name) or row.lacks(name)]
        images = [image for value in values for image in self._image(row, value)]
        try:
            for image in images:
                decode.check(image)
        except RecordError as error:
            raise ConfigError(f"{row.location}: {error.reason}") from error
        return tuple(images)

    def _image(self, row: Row, value: Any) -> tuple[str | bytes, ...]:
        if self.data.pictures is not None:
            number = self._keys.get(str(value))
            if number is None:
                raise ConfigError(
                    f"{row.location}: image {quoted(value, 60)} is not in {self._pictures.files[0]}"
                )
            value = read_row(self._pictures, number).get(self.data.pictures.image)
        elif isinstance(value, str | int) and self.data.image_name != "{}":
            value = self.data.image_name.replace("{}", str(value))
        try:
            return read_images(value, self.image_folder)
        except RecordError as error:
            raise ConfigError(f"{row.location}: {error.reason}") from error

    @cached_property
    def _pictures(self) -> Source:
        table = self.data.pictures
        assert table is not None
        own = table.hub is not None
        hub = table.hub if own else self.data.hub
        path = self._prepared(hub, table.revision if own else self.data.revision, table.path)
        return self._open(path, None)

    @cached_property
    def _keys(self) -> dict[str, int]:
        """Key of an image -> its row."""
        table, source = self.data.pictures, self._pictures
        assert table is not None
        return {str(read_row(source, n).get(table.key)): n for n in range(len(source))}


@dataclass(frozen=True)
class TruthRows(Rows):
    """Rows of a file of truth, whose images stay names: nobody looks at them."""

    items: Sequence[tuple[Mapping[str, Any], str]] = ()  # rows, and the place of each

    def __iter__(self) -> Iterator[tuple[Row, str]]:
        for number, (values, place) in enumerate(self.items):
            yield Row(self.task, values, self._columns, place, number), ""

    def images(self, row: Row, names: Sequence[str]) -> tuple[str | bytes, ...]:
        """What the columns hold, as text."""
        return tuple(str(row.value(name)) for name in names if row.has(name))


def literal(row: Row, name: str, value: str) -> Any:
    """A list that is stored as Python writes it. Raises ConfigError where it is not one."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        row.refuse(name, value, "a list as Python writes it")


def read_row(source: Source, number: int) -> dict[str, Any]:
    """A row. Raises ConfigError with its place when it cannot be read."""
    try:
        return source[number]
    except RecordError as error:
        raise ConfigError(f"{source.location(number)}: {one_line(error.reason)}") from error


def hub_folder(hub: str) -> str:
    """ "lmms-lab/POPE" -> "lmms-lab--POPE"."""
    return hub.replace("/", "--")


def _kind(path: Path) -> Literal["json", "arrow", "parquet"]:
    if path.suffix.lower() in (".json", ".jsonl"):
        return "json"
    arrow = path.suffix == ".arrow" or (path.is_dir() and next(path.glob("*.arrow"), None))
    return "arrow" if arrow else "parquet"
