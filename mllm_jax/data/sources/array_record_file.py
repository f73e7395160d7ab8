"""Reads ArrayRecord files by record number; a record is a JSON object.

A record is UTF-8 JSON, an object with the columns of a row. JSON has no bytes, so an encoded image
is {"bytes": base64 text}, alone in its column or in a list; a path is text as everywhere:

    {"id": "7", "image": {"bytes": "iVBORw0...", "path": "a.png"}, "conversations": [...]}

`write_array_record` writes such files.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mllm_jax.common.errors import ConfigError, one_line, require
from mllm_jax.common.folders import whole_file
from mllm_jax.data.progress import bar
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.base import Row, json_row
from mllm_jax.data.sources.shards import OPTIONS, Listing, Options, list_shards


@dataclass
class _Shard:
    """A file whose records are counted, as ArrayRecordDataSource asks for; it opens it later."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ArrayRecordSource:
    """The records of an .array_record (or .arrayrecord) file, or of a folder of them."""

    notes: Sequence[str] = ()

    def __init__(self, path: str | Path, options: Options = OPTIONS):
        """Reads how many records each file holds; in a folder, each that `options` choose.

        Raises:
            ConfigError: see `list_shards`; a file that is not a valid ArrayRecord.
        """
        self.path = Path(path)
        self.files = self.listing(path, options).files
        counts = [
            count_records(file) for file in bar(self.files, desc=f"opening {path}", unit="file")
        ]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._records = ArrayRecordDataSource(  # pickles itself without its open files
            [_Shard(str(f), 0, n, n) for f, n in zip(self.files, counts, strict=True)]
        )

    @staticmethod
    def listing(path: str | Path, options: Options = OPTIONS) -> Listing:
        """The files that are read."""
        return list_shards(path, (".array_record", ".arrayrecord"), options)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            data = self._records[int(number)]
        except RuntimeError as error:
            raise ConfigError(_broken(self.location(number), error)) from error
        row = json_row(data)
        return {column: _decoded(value, column) for column, value in row.items()}

    def location(self, number: int) -> str:
        """The file and the record in it, from 0: "train.array_record[12]"."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"{self.files[shard]}[{number - int(self._starts[shard])}]"


def write_array_record(rows: Iterable[Row], path: str | Path) -> None:
    """Writes rows as one file; it appears when it is complete.

    Args:
        rows: columns as JSON can hold them. Images are paths, encoded bytes, {"bytes", "path"}, or
            lists of those; plain bytes come back as {"bytes": bytes}.
        path: a new file, named .array_record or .arrayrecord.

    Raises:
        ConfigError: the file exists or is named otherwise, or a row holds what JSON cannot.
    """
    path = Path(path)
    require(
        path.suffix in (".array_record", ".arrayrecord"),
        f"{path}: expected a name that ends with .array_record or .arrayrecord",
    )
    require(not path.exists(), f"{path}: exists; remove it or give another name")
    one = "group_size:1"  # a group is decompressed as a whole
    with whole_file(path) as beside, closing(ArrayRecordWriter(str(beside), one)) as writer:
        for number, row in enumerate(rows):
            coded = {column: _encoded(value) for column, value in row.items()}
            try:
                text = json.dumps(coded, ensure_ascii=False, allow_nan=False)
                writer.write(text.encode("utf-8"))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{path}: row {number} cannot be JSON: {error}") from error


def count_records(file: Path) -> int:
    """How many records a file holds. Raises ConfigError if it is not a valid ArrayRecord."""
    try:
        reader = ArrayRecordReader(str(file))
        count = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise ConfigError(_broken(str(file), error)) from error
    return count


def _broken(location: str, error: RuntimeError) -> str:
    reason = one_line(str(error), 200)  # some of the library's errors say nothing
    return f"{location}: not an ArrayRecord file that can be read" + (
        f": {reason}" if reason else ""
    )


def _encoded(value: Any) -> Any:
    """Bytes of images -> base64 text."""
    if isinstance(value, list):
        return [_encoded(one) for one in value]
    if isinstance(value, bytes):
        value = {"bytes": value}
    if _is_image(value, bytes):
        return value | {"bytes": base64.b64encode(value["bytes"]).decode("ascii")}
    return value


def _decoded(value: Any, column: str) -> Any:
    """Base64 text of images -> bytes."""
    if isinstance(value, list):
        return [_decoded(one, column) for one in value]
    if _is_image(value, str):
        try:
            return value | {"bytes": base64.b64decode(value["bytes"], validate=True)}
        except (binascii.Error, ValueError) as error:
            raise RecordError("field", f"{column}: bytes are not base64 text ({error})") from error
    return value


def _is_image(value: Any, kind: type) -> bool:
    """Whether it is {"bytes": ...} or {"bytes": ..., "path": ...} with bytes of that kind."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"bytes", "path"}
        and isinstance(value.get("bytes"), kind)
    )
