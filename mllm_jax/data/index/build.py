"""Builds an index folder from a source: reads, checks and tokenises every row once, on all cores.

Worker processes read the rows in chunks; a chunk that is on disk is not read again, so an
interrupted build continues. One writer, bounded memory: a chunk travels as arrays.
"""

import contextlib
import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

from mllm_jax.common import failures
from mllm_jax.common.errors import RunError
from mllm_jax.data.index.chunk import Look, Reader, looks, read_chunk
from mllm_jax.data.index.storage import Chunk, is_chunk, join_chunks, load_chunk, save_chunk
from mllm_jax.data.progress import bar
from mllm_jax.data.workers import WorkerMessages, Workers

CHUNK_ROWS = 4096


def build(reader: Reader, folder: Path, workers: int) -> None:
    """Writes the arrays of an index into `folder`; its chunks are in `folder/parts` meanwhile.

    Args:
        reader: the stream.
        folder: of the index; chunks of an earlier build of the same rows are reused.
        workers: processes; 1 reads in this one.

    Raises:
        ConfigError: a file of the source cannot be read.
        RunError: a worker was killed, or the index cannot be written.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    ranges = [
        range(start, min(start + CHUNK_ROWS, len(reader.source)))
        for start in range(0, len(reader.source), CHUNK_ROWS)
    ]
    files = [parts / f"{rows.start:012d}.npz" for rows in ranges]
    missing = [(r, f) for r, f in zip(ranges, files, strict=True) if not is_chunk(f)]
    done = sum(len(rows) for rows in ranges) - sum(len(rows) for rows, _ in missing)
    if len(missing) > 1:  # long enough to report, also without a terminal
        left = len(reader.source) - done
        print(
            f"reading data.streams.{reader.name}: {left:,} rows, into {folder.parent}", flush=True
        )
    new = {file for _, file in missing}
    row_counts = _work(reader, missing, min(workers, len(missing)))
    progress = bar(total=len(reader.source), initial=done, desc=f"reading {reader.name}")

    def whole() -> Iterator[Chunk]:
        for file in files:  # joined while the next ones are made
            if file in new:
                progress.update(next(row_counts))
            yield load_chunk(file)

    with progress, contextlib.closing(row_counts), _written(reader.name, folder):
        join_chunks(whole(), folder)
    shutil.rmtree(parts)


@contextlib.contextmanager
def _written(name: str, folder: Path) -> Iterator[None]:
    """Wraps writes into an index folder; errors name its parent, since it has a temporary name."""
    try:
        yield
    except OSError as error:
        reason = f"{failures.reason(error)}; start again to continue from here"
        raise RunError(
            f"data.streams.{name}: its index cannot be written to {folder.parent}: {reason}"
        ) from error


def _work(
    reader: Reader, todo: list[tuple[range, Path]], workers: int
) -> Generator[int, None, None]:
    """Writes the chunks; yields the number of rows of each when it is on disk, in order."""
    make, numbers = _Maker(reader, todo), range(len(todo))
    if workers <= 1:
        yield from map(make, numbers)
        return

    def doing(number: int) -> str:
        return f"read data.streams.{reader.name} from row {todo[number][0].start} on"

    messages = WorkerMessages(
        "index-worker", doing, "take fewer workers", "start again to continue from here"
    )
    yield from Workers(make, workers, messages, _begin).iterate(numbers, ahead=2 * workers)


class _Maker:
    """Reads a numbered chunk and writes it to its file."""

    def __init__(self, reader: Reader, todo: list[tuple[range, Path]]):
        self._reader, self._todo = reader, todo
        self._look: Look | None = None  # of each process its own

    def __call__(self, number: int) -> int:
        """Returns the number of its rows."""
        if self._look is None:
            self._look = looks(self._reader)
        rows, file = self._todo[number]
        chunk = read_chunk(self._reader, rows, self._look)
        with _written(self._reader.name, file.parent.parent):
            save_chunk(chunk, file)
        if not gc.isenabled():  # see `_begin`
            gc.collect()
        return len(rows)


def _begin() -> None:
    """In a worker process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a worker
    # only errors make reference cycles here: collecting them between chunks is soon enough
    gc.freeze()
    gc.disable()
