"""Reads data sets in worker processes: picture hashes, which are cached, and runs of words.

rows -> Contents -> signatures of the pictures   DATA.hashes/KIND/<first row>.npz
                 -> runs of words
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, cut
from mllm_jax.common.failures import reason
from mllm_jax.common.folders import whole_file
from mllm_jax.corpus import overlap, pictures
from mllm_jax.corpus.contents import Contents, DataSet, stamp
from mllm_jax.corpus.overlap import Runs
from mllm_jax.corpus.pictures import THUMBNAIL, Window
from mllm_jax.data.images import decode
from mllm_jax.data.progress import bar
from mllm_jax.data.record_errors import RecordError, RefusedRow
from mllm_jax.data.workers import WorkerMessages, Workers

VERSION = 1  # of the cached signatures
ROWS = 1024  # read together
_DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of a cached file
WINDOWS = {"data": pictures.DATA_WINDOWS, "task": pictures.TASK_WINDOWS}


class Part(NamedTuple):
    """Some rows of a data set. Pictures and runs are numbered through all rows of the part."""

    rows: range
    ids: list[str]  # of the rows that can be read
    numbers: Int64[np.ndarray, "n"]  # of these in the source
    languages: list[str]
    image_rows: Int64[np.ndarray, "i"]  # number in the source of the row of every picture
    image_places: Int64[np.ndarray, "i"]  # which picture of its row, from 0
    hashes: UInt64[np.ndarray, "i w"]
    thumbnails: UInt8[np.ndarray, "i 8 8 3"]
    run_rows: Int64[np.ndarray, "r"]  # likewise of every run of words
    runs: UInt64[np.ndarray, "r"]
    inner_runs: UInt64[np.ndarray, "r k"]  # see `overlap.Runs`; of evaluation sets
    refused: list[RefusedRow]
    texts: int
    hashed: int  # pictures that were decoded, not read from the cache


class Scanner:
    """Reads numbered parts of a data set; sent to every worker once."""

    def __init__(
        self, data: DataSet, kind: str, cache: Path, words: int, known: np.ndarray | None = None
    ):
        """Takes what to read.

        Args:
            data: the rows.
            kind: `task` for evaluation sets, `data` for what is compared with them.
            cache: folder of the signatures.
            words: of a run.
            known: sorted hashes of runs; others are left out. None: all runs.
        """
        self._data, self._kind, self._words, self._known = data, kind, words, known
        self._rows = ROWS
        self._cache = cache / f"{kind}-{VERSION}"

    @property
    def parts(self) -> list[range]:
        """The rows of each part."""
        count = len(self._data.source)
        starts = range(0, count, self._rows)
        return [range(start, min(start + self._rows, count)) for start in starts]

    def __call__(self, number: int) -> Part:
        """Reads a part. Rows that cannot be read are listed in it."""
        rows = self.parts[number]
        read: list[tuple[int, Contents]] = []
        refused: list[RefusedRow] = []
        for row in rows:
            interrupts.check()
            with _refusing(self._data, row, refused):
                item = self._data.read(row)
                read.append((row, item))
        images = self._signatures(rows, read, refused)
        bad = {fault.row for fault in refused}
        read = [(row, item) for row, item in read if row not in bad]
        texts = [text for _, item in read for text in item.texts]
        runs, run_rows = self._runs(read)
        return Part(
            rows,
            [item.id for _, item in read],
            np.array([row for row, _ in read], np.int64),
            [item.language for _, item in read],
            images.rows,
            images.places,
            images.hashes,
            images.thumbnails,
            run_rows,
            runs.hashes,
            runs.inner,
            sorted(refused),
            len(texts),
            images.hashed,
        )

    def _runs(self, read: list[tuple[int, Contents]]) -> tuple[Runs, Int64[np.ndarray, "r"]]:
        """(runs of words, the row of each)."""
        texts = [overlap.words_of(text) for _, item in read for text in item.texts]
        rows = np.array([row for row, item in read for _ in item.texts], np.int64)
        alone = [not item.images for _, item in read for _ in item.texts]
        runs = overlap.runs_of(texts, self._words, alone, inner=self._known is None)
        if self._known is not None:
            places = overlap.find_known(self._known, runs.hashes)
            runs = Runs(*(field[places] for field in runs))
        return runs, rows[runs.texts]

    def _signatures(
        self, rows: range, read: list[tuple[int, Contents]], refused: list[RefusedRow]
    ) -> "_Signatures":
        """Hashes and thumbnails of the pictures; those of unchanged ones from the cache."""
        file = self._cache / f"{rows.start:012d}.npz"
        windows = WINDOWS[self._kind]
        cached = _load(file, len(windows))
        entries: list[_Entry] = []
        new = 0
        for row, item in read:
            with _refusing(self._data, row, refused):
                of_row = []
                for place, image in enumerate(item.images):
                    interrupts.check()
                    key = _digest(stamp(image))
                    values = cached.get(key)
                    if values is None:
                        values, new = _signature(image, windows), new + 1
                    of_row.append(_Entry(row, place, key, *values))
                entries += of_row
        made = _Signatures.of(entries, len(windows), new)
        if new:
            _save(file, made)
        return made


class _Entry(NamedTuple):
    """One picture."""

    row: int
    place: int
    key: int  # what changes with the picture
    hashes: UInt64[np.ndarray, "w"]
    thumbnail: UInt8[np.ndarray, "8 8 3"]


class _Signatures(NamedTuple):
    """Of the pictures of a part."""

    rows: Int64[np.ndarray, "i"]
    places: Int64[np.ndarray, "i"]
    keys: UInt64[np.ndarray, "i"]
    hashes: UInt64[np.ndarray, "i w"]
    thumbnails: UInt8[np.ndarray, "i 8 8 3"]
    hashed: int

    @staticmethod
    def of(entries: Sequence[_Entry], windows: int, hashed: int) -> "_Signatures":
        """The entries as arrays."""
        side = THUMBNAIL
        return _Signatures(
            np.array([entry.row for entry in entries], np.int64),
            np.array([entry.place for entry in entries], np.int64),
            np.array([entry.key for entry in entries], np.uint64),
            np.array([entry.hashes for entry in entries], np.uint64).reshape(-1, windows),
            np.array([entry.thumbnail for entry in entries], np.uint8).reshape(-1, side, side, 3),
            hashed,
        )


@contextmanager
def _refusing(data: DataSet, row: int, refused: list[RefusedRow]) -> Iterator[None]:
    """Lists a row that cannot be used, in place of its error."""
    try:
        yield
    except RecordError as error:
        place = data.source.location(row)
        refused.append(RefusedRow(row, str(row), place, error.code, cut(error.reason, 400)))


def _signature(image: str | bytes, windows: tuple[Window, ...]) -> tuple[np.ndarray, np.ndarray]:
    pixels = decode.decode(image)
    return pictures.hashes(pixels, windows), pictures.thumbnail(pixels)


def _digest(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _load(file: Path, windows: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """key -> (hashes, thumbnail); nothing where the file is missing or damaged."""
    try:
        with file.open("rb") as stream, np.load(stream) as arrays:
            keys, hashes, thumbnails = (arrays[name] for name in ("keys", "hashes", "thumbnails"))
    except (FileNotFoundError, NotADirectoryError, *_DAMAGED):
        return {}
    if hashes.shape != (len(keys), windows):
        return {}
    return dict(zip(keys.tolist(), zip(hashes, thumbnails, strict=True), strict=True))


def _save(file: Path, made: _Signatures) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as beside, beside.open("wb") as stream:
            np.savez(stream, keys=made.keys, hashes=made.hashes, thumbnails=made.thumbnails)
    except OSError as error:
        raise ConfigError(
            f"{file.parent}: picture hashes cannot be written here: {reason(error)}; give another "
            "folder by --cache DIR"
        ) from error


def scan(scanner: Scanner, workers: int, name: str) -> Iterator[Part]:
    """The parts of a data set in order.

    Args:
        scanner: what reads them.
        workers: processes; 1 reads in this one.
        name: of the data set, for messages.

    Raises:
        ConfigError: a file cannot be read, or the cache cannot be written.
        RunError: a worker was killed.
    """
    parts = scanner.parts
    total = parts[-1].stop
    with bar(total=total, desc=f"reading {name}", unit="row") as progress:
        for part in spread(
            scanner, len(parts), workers, lambda n: f"read {name} from row {parts[n].start} on"
        ):
            progress.update(len(part.rows))
            yield part


def spread(
    make: Callable[[int], Any], count: int, workers: int, doing: Callable[[int], str]
) -> Iterator[Any]:
    """make(0), make(1), ... in order; in worker processes, if there is more than one to make."""
    if workers <= 1 or count <= 1:
        yield from map(make, range(count))
        return
    messages = WorkerMessages(
        "corpus-worker", doing, "take fewer workers", "start again to continue from here"
    )
    pool = Workers(make, min(workers, count), messages)
    yield from pool.iterate(range(count), ahead=2 * workers)
