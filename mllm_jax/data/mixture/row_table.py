"""Keeps the row counts of windows on disk, so that a resumed run does not count them again.

A file per plan, written whole and read with its checksum; one that is damaged or of another kind is
counted again. One process counts, the others of a machine or a shared disk wait and read.

    magic and checksum (32 bytes) | rows before each window (int64) | positions before each (int64)
"""

import os
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mllm_jax.common import interrupts
from mllm_jax.common.folders import whole_file
from mllm_jax.common.locks import try_lock

SECONDS = 5.0  # between two saves while windows are counted
HEAD = 32  # bytes before the numbers
_MAGIC = b"mllm-jax rows 2\n"


class RowTable:
    """Rows and positions before each window of a plan, in a file."""

    def __init__(self, path: Path):
        """`path` need not exist yet."""
        self._path = path
        self._lock = path.with_name(f".{path.name}.lock")
        self._saved, self._time = 1, time.monotonic()
        self._messages: set[str] = set()

    def load(self) -> tuple[array, array]:
        """What was saved last; one window that begins at 0 if there is nothing that can be used."""
        if not self._path.is_file():
            return array("q", [0]), array("q", [0])
        content = self._path.read_bytes()
        head, body = content[:HEAD], content[HEAD:]
        if head != _head(body) or len(body) % 16:
            self._say(f"{self._path}: damaged; its rows are counted again")
            return array("q", [0]), array("q", [0])
        rows, starts = array("q", body[: len(body) // 2]), array("q", body[len(body) // 2 :])
        if sys.byteorder == "big":
            rows.byteswap()
            starts.byteswap()
        self._saved = max(self._saved, len(rows))
        return rows, starts

    def save(self, rows: array, starts: array) -> None:
        """Writes the counts, unless as many are there. The caller holds the lock."""
        there = len(self.load()[0])
        self._saved, self._time = max(there, len(rows)), time.monotonic()
        if there >= len(rows):
            return
        body = np.concatenate([rows, starts]).astype("<i8").tobytes()
        try:
            with whole_file(self._path) as beside:
                beside.write_bytes(_head(body) + body)
        except OSError as error:
            self._cannot_write(error)

    def is_due(self, windows: int) -> bool:
        """Whether a save is worth it: twice as many as last time, or some seconds' work."""
        return windows >= 2 * self._saved or time.monotonic() - self._time > SECONDS

    @contextmanager
    def lock(self, wait: bool = True) -> Iterator[bool]:
        """Yields whether this process may write: one at a time, none where the disk forbids it."""
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            file = try_lock(self._lock)
            while file is None and wait:
                interrupts.check()
                time.sleep(0.05)
                file = try_lock(self._lock)
        except OSError as error:
            self._cannot_write(error)
            yield False
            return
        if file is None:
            yield False
            return
        try:
            yield True
        finally:
            self._lock.unlink(missing_ok=True)
            os.close(file[0])

    def _cannot_write(self, error: OSError) -> None:
        self._say(f"{self._path}: {error.strerror}; the counts of rows are not kept")

    def _say(self, message: str) -> None:
        """Prints a message once."""
        if message not in self._messages:
            self._messages.add(message)
            print(message, file=sys.stderr)


def _head(body: bytes) -> bytes:
    return _MAGIC + blake2b(body, digest_size=16).digest()
