"""Event files as TensorBoard reads them, written by the thread that calls.

tensorboardX writes from a thread behind a queue: where the disk is full the thread ends, the queue
fills, and the caller waits for ever.
"""

import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mllm_jax.common.failures import naming
from mllm_jax.common.imports import without

with without("torch"):  # tensorboardX imports it where it can, seconds that no event needs
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
    from tensorboardX.record_writer import masked_crc32c


class EventFile:
    """One event file of scalars."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        """Begins a file in `folder`; TensorBoard then forgets steps from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names: the time comes first
        names = (f"{int(time.time()):010}", socket.gethostname(), secrets.token_hex(4))
        self._path = folder / f"events.out.tfevents.{'.'.join(names)}"
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 (closed in `close`)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(step=purge_step, session_log=start)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step. Raises OSError."""
        values = [Summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        """A TFRecord: length, its checksum, data, its checksum."""
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        with naming(self._path):
            append(self._file, length + sums[0] + data + sums[1])


def append(file: BinaryIO, data: bytes) -> None:
    """Writes all of `data` to the end of an unbuffered file, or raises OSError and leaves none."""
    start = os.fstat(file.fileno()).st_size
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except OSError:
        os.ftruncate(file.fileno(), start)
        raise
