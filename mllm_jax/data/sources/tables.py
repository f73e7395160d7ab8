"""Reads Parquet and Arrow by row number, as the `datasets` library writes them.

    Arrow    mapped into memory; a row is read without its neighbours (a record batch is a view)
    Parquet  reading a row decodes its row group, so a few groups are kept; a sequential pass by
             `row_groups` decodes each group once

Rows come in groups (Arrow: record batches) that follow one another in the shards:

    shard       a.parquet      b.parquet
    group       0    1         2          _first 0 2 3
    rows        0-3  4-5       6-9        _starts 0 4 6 10
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mllm_jax.common.errors import ConfigError, one_line, require
from mllm_jax.data.progress import bar
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.base import Row
from mllm_jax.data.sources.saved import list_arrow
from mllm_jax.data.sources.shards import OPTIONS, Listing, Options, list_shards

CACHE_BYTES = 256 * 2**20  # of decoded groups in a process; the last one is always kept
OPEN = 64  # shards that are open at a time, far below the usual limit of 1024 files
ROWS_A_BYTE = 2**16  # of a file; no encoding packs more, so a larger count is not believed
_BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: names of columns


class _Scan(NamedTuple):
    """What a shard holds."""

    columns: list[str]
    rows: list[int]  # of each group
    places: list[int]  # what `_Shards._decode` finds each group by


class _Shards:
    """Rows of shards that all have the same columns, by number."""

    notes: Sequence[str] = ()

    def __init__(self, path: str | Path, listing: Listing):
        self.path, self.files = Path(path), listing.files
        scans = []
        for file in bar(self.files, desc=f"opening {path}", unit="file"):
            try:
                scans.append(self._scan(file))
            except _BROKEN as error:
                raise ConfigError(f"{file}: {self._broken}: {_line(error)}") from error
        _same_columns(self.files, [scan.columns for scan in scans])
        for file, scan in zip(self.files, scans, strict=True):
            most = file.stat().st_size * ROWS_A_BYTE
            possible = all(count >= 0 for count in scan.rows) and sum(scan.rows) <= most
            require(possible, f"{file}: {self._broken}: {sum(scan.rows)} rows cannot be in it")
        rows = [count for scan in scans for count in scan.rows]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._first = np.concatenate([[0], np.cumsum([len(scan.rows) for scan in scans])])
        self._places = np.array([place for scan in scans for place in scan.places], np.int64)
        self._begin()

    # what the two kinds of shards do differently
    _broken: str  # what a message says about a file that cannot be read

    def _scan(self, file: Path) -> _Scan:
        raise NotImplementedError

    @staticmethod
    def _open(file: Path) -> Any:
        raise NotImplementedError

    def _decode(self, opened: Any, place: int) -> pa.Table | pa.RecordBatch:
        raise NotImplementedError

    def _begin(self) -> None:
        """What a process has of its own: open shards and decoded groups. Never pickled."""
        self._opened = lru_cache(OPEN)(self._open)
        self._lock = Lock()
        self._groups: OrderedDict[int, tuple[pa.Table | pa.RecordBatch, int]] = OrderedDict()
        self._bytes = 0  # of what is kept

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_opened", "_lock", "_groups", "_bytes")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        number = int(number)
        group = self._group_of(number)
        table = self._group(group)
        try:
            return table.slice(number - int(self._starts[group]), 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise RecordError("text", f"not UTF-8 text ({error.reason})") from error
        except (ValueError, OverflowError, pa.ArrowException) as error:  # as a date of year 99999
            raise RecordError(
                "field", f"a value that cannot be read: {one_line(str(error))}"
            ) from error

    def location(self, number: int) -> str:
        """The file and the row in it, from 0: "train-00001.parquet[12]"."""
        shard = self._shard_of(self._group_of(number))
        return f"{self.files[shard]}[{number - int(self._starts[self._first[shard]])}]"

    def row_groups(self) -> list[range]:
        """Numbers of the rows that are decoded together, in order, every row once."""
        edges = itertools.pairwise(self._starts.tolist())
        return [range(start, stop) for start, stop in edges if start < stop]

    def _group_of(self, number: int) -> int:
        # empty groups start where the next one does; the last of them holds the row
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _shard_of(self, group: int) -> int:
        return int(np.searchsorted(self._first, group, side="right")) - 1

    def _group(self, group: int) -> pa.Table | pa.RecordBatch:
        with self._lock:  # threads that want the same group decode it once
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group][0]
            file = self.files[self._shard_of(group)]
            try:
                table = self._decode(self._opened(file), int(self._places[group]))
            except _BROKEN as error:
                raise ConfigError(f"{file}: {self._broken}: {_line(error)}") from error
            rows = int(self._starts[group + 1] - self._starts[group])
            require(
                table.num_rows == rows,
                f"{file}: {self._broken}: group {int(self._places[group])} should have {rows} "
                f"rows and has {table.num_rows}",
            )
            self._groups[group] = table, table.nbytes
            self._bytes += table.nbytes
            while self._bytes > CACHE_BYTES and len(self._groups) > 1:
                self._bytes -= self._groups.popitem(last=False)[1][1]
            return table


class ParquetSource(_Shards):
    """The rows of a .parquet file, or of a folder of them (folders in it included).

    A random row costs the decoding of its row group, so an order that jumps is served better by
    Arrow files, or by Parquet with small groups.
    """

    _broken = "not a Parquet file that can be read"

    def __init__(self, path: str | Path, options: Options = OPTIONS):
        """Reads the footers; of a folder, those of the files that `options` choose.

        Raises:
            ConfigError: see `list_shards`; a file that is not valid Parquet, or other columns than
                in the first file.
        """
        super().__init__(path, self.listing(path, options))

    @staticmethod
    def listing(path: str | Path, options: Options = OPTIONS) -> Listing:
        """The files that are read."""
        return list_shards(path, (".parquet",), options)

    def _scan(self, file: Path) -> _Scan:
        footer = pq.read_metadata(file)
        groups = range(footer.num_row_groups)
        rows = [footer.row_group(group).num_rows for group in groups]
        return _Scan(footer.schema.to_arrow_schema().names, rows, list(groups))

    @staticmethod
    def _open(file: Path) -> pq.ParquetFile:
        return pq.ParquetFile(file)

    def _decode(self, opened: pq.ParquetFile, place: int) -> pa.Table:
        # a loader has workers of its own; Arrow's pool of threads beside each would crowd the cores
        return opened.read_row_group(place, use_threads=False)


class _Stream(NamedTuple):
    """An Arrow stream in a mapped file; its batches are found by their bytes."""

    data: pa.Buffer
    schema: pa.Schema


class ArrowSource(_Shards):
    """The rows of an .arrow file, of a folder of them, or of a `Dataset.save_to_disk` folder.

    Both layouts of Arrow's IPC are read: streams, which `datasets` writes, and files.
    """

    _broken = "not an Arrow file that can be read"

    def __init__(self, path: str | Path, options: Options = OPTIONS):
        """Finds the record batches; in a folder, of the files that `options` choose.

        Raises:
            ConfigError: see `list_arrow`; a file that is no Arrow or has lost its end, or other
                columns than in the first file.
        """
        super().__init__(path, self.listing(path, options))

    @staticmethod
    def listing(path: str | Path, options: Options = OPTIONS) -> Listing:
        """The files that are read."""
        return list_arrow(path, options)

    def _scan(self, file: Path) -> _Scan:
        opened = self._open(file)
        if isinstance(opened, _Stream):
            return _scan_stream(file, opened)
        groups = range(opened.num_record_batches)
        rows = [opened.get_batch(group).num_rows for group in groups]
        return _Scan(opened.schema.names, rows, list(groups))

    @staticmethod
    def _open(file: Path) -> Any:
        data = pa.memory_map(str(file)).read_buffer()
        if data[:6].to_pybytes() == b"ARROW1":
            return pa.ipc.open_file(data)
        return _Stream(data, pa.ipc.open_stream(data).schema)

    def _decode(self, opened: Any, place: int) -> pa.RecordBatch:
        if isinstance(opened, _Stream):
            message = pa.ipc.read_message(pa.BufferReader(opened.data.slice(place)))
            batch = pa.ipc.read_record_batch(message, opened.schema)
        else:
            batch = opened.get_batch(place)
        for column in batch.columns:
            _check_buffers(column)
        return batch


def _scan_stream(file: Path, stream: _Stream) -> _Scan:
    """Walks from batch to batch; of a mapped file, only their headers are read."""
    source = pa.BufferReader(stream.data)
    reader = pa.ipc.open_stream(source)
    rows, places = [], []
    while True:
        place = source.tell()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            break
        if not places:
            first = pa.ipc.read_message(pa.BufferReader(stream.data.slice(place))).type
            require(
                first == "record batch",
                f"{file}: a stream with dictionary-encoded columns, whose batches cannot be read "
                "one by one; write it as an Arrow file (pyarrow.ipc.new_file) or as Parquet",
            )
        rows.append(batch.num_rows)
        places.append(place)
    require(
        place < source.tell(),
        f"{file}: no end-of-stream marker: the file is truncated or still being written",
    )
    require(
        source.tell() == stream.data.size,
        f"{file}: continues after the end of the stream; one stream a file",
    )
    return _Scan(stream.schema.names, rows, places)


def _check_buffers(array: pa.Array) -> None:
    """Refuses offsets that lead out of an array: Arrow believes them, and the process would crash.

    As Arrow's own full validation, but texts are looked at as bytes: so they are not read here, and
    one that is not UTF-8 is an error of its row.

    Raises:
        pa.ArrowInvalid: with what is wrong.
    """
    array.validate()  # sizes of buffers and lengths of children, in constant time
    kind = array.type
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _check_buffers(array.field(number))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        if len(offsets) and not (offsets[0] >= 0 and (np.diff(offsets) >= 0).all()):
            raise pa.ArrowInvalid("offsets of lists that do not ascend")
        if len(offsets) and offsets[-1] > len(array.values):
            raise pa.ArrowInvalid("offsets of lists that lead beyond their values")
        _check_buffers(array.values)
    elif pa.types.is_string(kind):
        array.view(pa.binary()).validate(full=True)
    elif pa.types.is_large_string(kind):
        array.view(pa.large_binary()).validate(full=True)
    else:
        array.validate(full=True)


def _same_columns(files: list[Path], columns: list[list[str]]) -> None:
    for file, names in zip(files, columns, strict=True):
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"{file}: several columns are called {', '.join(twice)}")
        missing, more = sorted(set(columns[0]) - set(names)), sorted(set(names) - set(columns[0]))
        differences = [f"lacks {', '.join(missing)}"] * bool(missing)
        differences += [f"has {', '.join(more)} besides"] * bool(more)
        require(
            not differences,
            f"{file}: {' and '.join(differences)}, compared with {files[0]}; all shards of a "
            "stream need the same columns",
        )


def _line(error: BaseException) -> str:
    return one_line(str(error), 200)
