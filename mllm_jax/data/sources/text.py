"""Reads plain text corpora by document number: a document a line, or a document a file.

Where lines begin is found by numpy on a memory map, so a corpus of gigabytes is opened at the
speed of the disk and held as two numbers a document.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from mllm_jax.common.errors import require
from mllm_jax.data.progress import bar
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.base import Row
from mllm_jax.data.sources.shards import OPTIONS, Listing, Options, list_shards

BLOCK = 2**24  # bytes searched at a time
_BOM = b"\xef\xbb\xbf"
_IS_SPACE = np.isin(np.arange(256), list(b" \t\r\n\v\f"))  # byte -> whether it is ASCII space


class TextSource:
    """Rows {"id": ..., "text": ...}.

    A .txt file has a document on every line that is not blank; its id is "name:line". In a folder
    every .txt file is a document; its id is the path from the folder.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: str | Path, options: Options = OPTIONS):
        """Finds the lines of a file, or the files of a folder that `options` choose.

        Raises:
            ConfigError: see `list_shards`; a file that is not named .txt.
        """
        self.path = Path(path)
        self.files = self.listing(path, options).files
        self._lines: _Lines | None = None
        if self.path.is_file():
            require(
                self.path.suffix.lower() == ".txt",
                f"{path}: expected a file named .txt (a document a line) or a folder of them",
            )
            self._lines = _find_lines(self.path)

    @staticmethod
    def listing(path: str | Path, options: Options = OPTIONS) -> Listing:
        """The files that are read."""
        return list_shards(path, (".txt",), options)

    def __len__(self) -> int:
        return len(self.files) if self._lines is None else len(self._lines.number)

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        file = self._file(number)
        with file.open("rb") as opened:
            if self._lines is None:
                data, line = opened.read().removeprefix(_BOM), 1
            else:
                start, stop, line = (int(field[number]) for field in self._lines)
                opened.seek(start)
                data = opened.read(stop - start).removesuffix(b"\r")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line += data[: error.start].count(b"\n")
            raise RecordError("text", f"{file}:{line}: not UTF-8 text ({error.reason})") from error
        if not text.strip():
            raise RecordError("field", f"{file}:{line}: nothing but space")
        if self._lines is None:
            return {"id": file.relative_to(self.path).as_posix(), "text": text}
        return {"id": f"{file.name}:{line}", "text": text}

    def location(self, number: int) -> str:
        line = 1 if self._lines is None else int(self._lines.number[number])
        return f"{self._file(number)}:{line}"

    def _file(self, number: int) -> Path:
        return self.files[number] if self._lines is None else self.path


class _Lines(NamedTuple):
    """Lines that are not blank: first byte, end (the line break), number from 1."""

    start: Int64[np.ndarray, "n"]
    stop: Int64[np.ndarray, "n"]
    number: Int64[np.ndarray, "n"]


def _find_lines(path: Path) -> _Lines:
    """One pass over a file, block by block; what is held are the lines found."""
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    bom = len(_BOM) if data[:3].tobytes() == _BOM else 0
    parts: list[_Lines] = []
    start, line, written = bom, 1, False  # of the line in which a block begins
    with bar(total=size, desc=f"lines of {path}", unit="B", unit_scale=True) as progress:
        for at in range(bom, size, BLOCK):
            block = data[at : at + BLOCK]
            ends = np.flatnonzero(block == ord("\n")) + at
            starts = np.concatenate([[start], ends + 1])
            filled = _has_text(block, np.maximum(starts - at, 0))
            filled[0] |= written
            keep = np.flatnonzero(filled[:-1])
            parts.append(_Lines(starts[keep], ends[keep], keep + line))
            start, line, written = int(starts[-1]), line + len(ends), bool(filled[-1])
            progress.update(len(block))
    if written:  # the last line has no break
        parts.append(_Lines(*(np.array([value]) for value in (start, size, line))))
    if not parts:
        return _Lines(*(np.zeros(0, np.int64) for _ in range(3)))
    return _Lines(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _has_text(
    block: UInt8[np.ndarray, "b"], starts: Int64[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Whether each of the pieces that begin at `starts` holds more than space.

    "a \\n \\nb"  starts 0 3 5  ->  True False True
    """
    text = ~_IS_SPACE[block]
    inside = starts < len(block)  # a line may begin where the next block does
    has_text = np.zeros(len(starts), bool)
    has_text[inside] = np.logical_or.reduceat(text, starts[inside])
    return has_text
