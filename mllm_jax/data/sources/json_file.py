"""Reads LLaVA JSON (one list) and JSONL (an object a line) by row number, without loading the file.

A scan finds where each object begins and ends; a row is then read from its bytes.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.data.sources.base import Row, json_row
from mllm_jax.data.sources.shards import OPTIONS, Listing, Options

BLOCK = 2**20  # bytes searched for line breaks at a time
AHEAD = 2**18  # bytes read at a time where one row is read after the other
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonSource:
    """The objects of a .json list or of a .jsonl file."""

    notes: Sequence[str] = ()

    def __init__(self, path: str | Path):
        """Scans the file once.

        Raises:
            ConfigError: no such file, another suffix, or a .json that is not a list of objects
                (with its line). Lines of a .jsonl are looked at when they are read.
        """
        self.path = Path(path)
        self.files = self.listing(path).files
        suffix = self.path.suffix.lower()
        require(
            suffix in (".json", ".jsonl"),
            f"{path}: expected a file named .json (one list) or .jsonl (a record a line)",
        )
        scan = _lines if suffix == ".jsonl" else _elements
        self._spans, self._places = scan(self.path)
        self._begin()

    @staticmethod
    def listing(path: str | Path, options: Options = OPTIONS) -> Listing:
        """The file that is read; `options` are those of folders."""
        del options
        path = Path(path)
        require(not path.is_dir(), f"{path}: a folder; name one .json or .jsonl file as the path")
        require(path.is_file(), f"{path}: no such file")
        return Listing([path], [])

    def _begin(self) -> None:
        """What a process has of its own."""
        self._file: int | None = None
        self._held = (0, b"")  # the position in the file, and what was read from there
        self._next = 0

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> Row:
        return json_row(self.raw(number))

    def raw(self, number: int) -> bytes:
        """The bytes of one row, as they are in the file."""
        start, stop = self._spans[number].tolist()
        first, held = self._held
        if not first <= start <= stop <= first + len(held):
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
            count = stop - start if number != self._next else max(stop - start, AHEAD)
            first, held = self._held = start, os.pread(self._file, count, start)
        self._next = number + 1
        return held[start - first : stop - first]

    def location(self, number: int) -> str:
        return f"{self.path}:{int(self._places[number])}"

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_file", "_held", "_next")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def _lines(path: Path) -> tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n"]]:
    """(first byte, end) and number of every line that is not blank."""
    if path.stat().st_size == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    data = np.memmap(path, np.uint8, mode="r")
    blocks = range(0, len(data), BLOCK)
    breaks = [np.flatnonzero(data[i : i + BLOCK] == ord("\n")) + i for i in blocks]
    ends = np.concatenate([*breaks, [len(data)]]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if bytes(data[:3]) == _BOM:
        starts[0] = 3
    # a short line may be blank; only those are looked at
    blank = ends <= starts
    for i in np.flatnonzero((ends - starts <= 8) & ~blank):
        blank[i] = not bytes(data[starts[i] : ends[i]]).strip()
    keep = np.flatnonzero(~blank)
    return np.stack([starts[keep], ends[keep]], 1), keep + 1


def _elements(path: Path) -> tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n"]]:
    """(first byte, end) and line of every element of a JSON list."""
    text = _read(path)
    # integers of any length: one that Python does not read ends its own record, not the scan
    decode, spans = json.JSONDecoder(parse_int=str).raw_decode, []
    at = _skip(text, 0)
    try:
        if text[at : at + 1] != "[":
            value, stop = decode(text, at)
            if (end := _skip(text, stop)) != len(text):
                raise json.JSONDecodeError("Extra data", text, end)
            raise ConfigError(f"{path}: expected a list of records, found {type(value).__name__}")
        at = _skip(text, at + 1)
        while text[at : at + 1] != "]" or spans:
            stop = decode(text, at)[1]
            spans.append((at, stop))
            at = _skip(text, stop)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
        if text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter or ']'", text, at)
        end = _skip(text, at + 1)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        lines = "; if every line is a record of its own, name the file .jsonl"
        hint = lines if error.msg == "Extra data" else ""
        raise ConfigError(
            f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno}){hint}"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}:1: not JSON we can read: nested too deeply") from error
    return _byte_spans(text, spans, path)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # read_text would turn \r\n into \n
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text ({error.reason})") from error


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _byte_spans(
    text: str, spans: list[tuple[int, int]], path: Path
) -> tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n"]]:
    """Spans of characters -> spans of bytes in the file, and lines."""
    with path.open("rb") as file:
        byte = 3 if file.read(3) == _BOM else 0
    at, line, byte_spans, lines = 0, 1, [], []
    for start, stop in spans:
        gap = text[at:start]
        byte, line = byte + len(gap.encode()), line + gap.count("\n")
        inside = text[start:stop]
        size = len(inside.encode())
        byte_spans.append((byte, byte + size))
        lines.append(line)
        byte, line, at = byte + size, line + inside.count("\n"), stop
    return np.array(byte_spans, np.int64).reshape(-1, 2), np.array(lines, np.int64)
