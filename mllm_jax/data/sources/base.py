"""What every kind of source gives: rows by number. First stop on the way of the data."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Row = dict[str, Any]  # columns as stored; an image is a path, bytes, {"bytes", "path"}, or a list


@runtime_checkable
class Source(Protocol):
    """The rows of one stream, by number.

    Cheap to send to another process: files are opened when first read, and not sent.
    """

    files: list[Path]  # whose content this is

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row:
        """One row. Raises Fault when it cannot be read."""
        ...

    def where(self, number: int) -> str:
        """Where a row stands, for messages: "train.jsonl:12"."""
        ...
