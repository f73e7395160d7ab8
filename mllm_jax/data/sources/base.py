"""Defines what every kind of source offers: rows by number."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mllm_jax.data.record_errors import RecordError

LONG_INTEGER = "an integer of more digits than can be read"
_decode = json.JSONDecoder().raw_decode
Row = dict[str, Any]  # columns as stored; an image is a path, bytes, {"bytes", "path"}, or a list


@runtime_checkable
class Source(Protocol):
    """The rows of one stream, by number.

    Cheap to send to another process: files are opened when first read, and not sent.
    """

    files: list[Path]  # whose content this is

    @property
    def notes(self) -> Sequence[str]:
        """What in the files is not read, for `prepare` to print."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row:
        """One row. Raises RecordError when it cannot be read."""
        ...

    def location(self, number: int) -> str:
        """The place of a row, for messages: "train.jsonl:12"."""
        ...


def json_row(data: bytes) -> Row:
    """A row that is stored as a JSON object. Raises RecordError for anything else."""
    try:
        text = data.decode("utf-8")
        # nearly always an object and nothing around it: half the time of `loads`, which judges else
        row, end = _decode(text) if text.startswith("{") else (None, -1)
        if end != len(text):
            row = json.loads(text)
    except UnicodeDecodeError as error:
        raise RecordError("json", f"not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise RecordError("json", f"not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise RecordError("json", "not JSON we can read: nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise RecordError("json", f"not JSON we can read: {LONG_INTEGER}") from error
    if not isinstance(row, dict):
        raise RecordError("field", f"expected an object, found {type(row).__name__}")
    return row
