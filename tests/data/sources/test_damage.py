"""Damaged files of every kind: refused in one line, or read; never another exception or a crash."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.array_record_file import ArrayRecordSource, write_array_record
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.data.sources.tables import ArrowSource, ParquetSource
from mllm_jax.data.sources.text import TextSource
from mllm_jax.data.sources.web_dataset import WebDatasetSource

ROWS: list[dict[str, Any]] = [
    {
        "id": f"r{n}",
        "image": {"bytes": bytes([n]) * n, "path": f"{n}.png"} if n % 3 else None,
        "conversations": [{"from": "human", "value": f"Zer da {n}?"}],
    }
    for n in range(6)
]
TABLE = pa.Table.from_pylist(ROWS)


def parquet(path: Path) -> None:
    pq.write_table(TABLE, path, row_group_size=3)


def arrow(path: Path, new: Any = pa.ipc.new_stream, **options: Any) -> None:
    with new(path, TABLE.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(TABLE, max_chunksize=3)


def tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for n, folder in enumerate(("", "d" * 120 + "/")):  # the second needs a pax header
            for extension, data in (("json", b'{"a": 1}'), ("txt", b"kaixo")):
                info = tarfile.TarInfo(f"{folder}{n}.{extension}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


def lines() -> str:
    return "\n".join(json.dumps({**row, "image": "a.png"}) for row in ROWS)


KINDS: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any]]] = {
    "parquet": (ParquetSource, "a.parquet", parquet),
    "arrow stream": (ArrowSource, "a.arrow", arrow),
    "arrow file": (ArrowSource, "a.arrow", lambda path: arrow(path, pa.ipc.new_file)),
    "arrow lz4": (
        ArrowSource,
        "a.arrow",
        lambda path: arrow(path, pa.ipc.new_file, compression="lz4"),
    ),
    "array_record": (ArrayRecordSource, "a.array_record", lambda p: write_array_record(ROWS, p)),
    "webdataset": (WebDatasetSource, "a.tar", tar),
    "jsonl": (JsonSource, "a.jsonl", lambda path: path.write_text(lines())),
    "json": (JsonSource, "a.json", lambda p: p.write_text(f"[{','.join(lines().splitlines())}]")),
    "text": (TextSource, "a.txt", lambda path: path.write_text("kaixo\n" * 9)),
}
PATCHES = [b"\0", b"\xff", b"\x7f", b"9", b"-1", b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a file of each kind."""
    folder, made = tmp_path_factory.mktemp("intact"), {}
    for kind, (_, name, write) in KINDS.items():
        path = folder / kind.replace(" ", "-") / name
        path.parent.mkdir()
        write(path)
        made[kind] = path.read_bytes()
    return made


def read(open_source: Callable[[Path], Any], path: Path) -> list[Any] | None:
    """All rows, None for those that are faults; or None where the file is refused."""
    try:
        source = open_source(path)
        assert len(source) <= 10**6
        return [row(source, number, path) for number in range(len(source))]
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    assert path.name in message
    return None


def row(source: Any, number: int, path: Path) -> Any:
    assert str(path) in source.location(number)
    try:
        return source[number]
    except RecordError as error:
        reason = error.reason
    assert "\n" not in reason
    return None


@pytest.mark.parametrize("kind", KINDS)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80
)
@given(data=st.data())
def test_bytes_that_changed(tmp_path: Path, intact, kind: str, data):
    open_source, name, _ = KINDS[kind]
    content = bytearray(intact[kind])
    changes = st.tuples(st.integers(0, len(content) - 1), st.sampled_from(PATCHES))
    for at, patch in data.draw(st.lists(changes, min_size=1, max_size=4)):
        content[at : at + len(patch)] = patch
    (tmp_path / name).write_bytes(content)
    read(open_source, tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_cut_off(tmp_path: Path, intact, kind: str):
    open_source, name, _ = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(intact[kind])
    whole = read(open_source, path)
    assert whole and None not in whole
    for part in range(40):
        path.write_bytes(intact[kind][: len(intact[kind]) * part // 40])
        rows = read(open_source, path)
        if kind in ("text", "jsonl"):  # whose lines stand alone
            assert rows is not None and len(rows) <= len(whole)
            assert all(a in (b, None) for a, b in zip(rows[:-1], whole, strict=False))
        else:
            assert rows is None or (kind == "webdataset" and rows == whole)  # cut in its zeros


# ----------------------------------------------------------------------------- numbers that lie


def thrift(value: int) -> bytes:
    """A number as a Parquet footer has it: zigzag, seven bits a byte."""
    value, out = value << 1, b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("rows", [1000, 8000, 2**40, 2**62 - 1])
def test_parquet_that_claims_more_rows_than_it_has(tmp_path: Path, rows: int):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["kaixo"] * 77}), path)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8].replace(thrift(77), thrift(rows))
    path.write_bytes(data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pq.read_metadata(path).num_rows == rows
    with pytest.raises(ConfigError, match=r"a\.parquet: not a Parquet file that can be read: "):
        ParquetSource(path)[0]


@pytest.mark.parametrize(
    "size", [b"-512", b"-1024", b"1_0", b"+5", b"", b" 5", b"9" * 5000, b"0x10"]
)
def test_tar_sizes_that_are_no_whole_number(tmp_path: Path, size: bytes):
    """A negative one led back to the header before it, for ever."""
    tail = b" size=" + size + b"\n"
    record = str(len(tail) + len(str(len(tail) + 2))).encode() + tail
    record = str(len(tail) + len(str(len(record)))).encode() + tail
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("a.txt")
    padding = bytes(-len(record) % 512)
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf() + record + padding + member.tobuf() + bytes(1024))
    with pytest.raises(ConfigError, match=r"a\.tar: damaged: a pax header states the size"):
        WebDatasetSource(path)


def test_tar_headers_without_end_are_refused(tmp_path: Path):
    path = tmp_path / "a.tar"
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE):
        header = tarfile.TarInfo("name")
        header.type, header.size = kind, 2**33
        with path.open("wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.truncate(2**33 + 4096)  # takes no space
        with pytest.raises(ConfigError, match="damaged: a header of 8589934592 bytes"):
            WebDatasetSource(path)
    records = b"6 a=b\n" * (2**20 // 6)  # took minutes where each was cut off the rest
    header.type, header.size = tarfile.XHDTYPE, len(records)
    member = tarfile.TarInfo("a.txt").tobuf()
    padding = bytes(-len(records) % 512)
    path.write_bytes(header.tobuf() + records + padding + member + bytes(1024))
    assert len(WebDatasetSource(path)) == 1


@pytest.mark.parametrize(
    "size", [b"0000000001_0", b"0o000000010\0", b"      -0010\0", b"\xff" * 12]
)
def test_tar_headers_of_other_numbers_are_refused(tmp_path: Path, size: bytes):
    header = bytearray(tarfile.TarInfo("a.txt").tobuf())
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(ConfigError, match=r"a\.tar: not a tar file"):
        WebDatasetSource(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["jsonl", "json", "webdataset", "array_record"])
def test_integers_of_many_digits_are_named(tmp_path: Path, kind: str):
    open_source, name, _ = KINDS[kind]
    row = '{"id": ' + "7" * 5000 + "}"
    if kind == "webdataset":
        with tarfile.open(tmp_path / name, "w") as file:
            info = tarfile.TarInfo("a.json")
            info.size = len(row)
            file.addfile(info, io.BytesIO(row.encode()))
    elif kind == "array_record":
        writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter(
            str(tmp_path / name), "group_size:1"
        )
        writer.write(row.encode())
        writer.close()
    else:
        (tmp_path / name).write_text(f"[{row}]" if kind == "json" else row)
    with pytest.raises(
        (ConfigError, RecordError), match="an integer of more digits than can be read"
    ):
        open_source(tmp_path / name)[0]


def test_a_value_that_python_cannot_hold_is_a_fault_of_its_row(tmp_path: Path):
    days = pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"day": days}), tmp_path / "a.parquet")
    source = ParquetSource(tmp_path / "a.parquet")
    assert source[0]["day"].year == 1970
    with pytest.raises(RecordError, match="a value that cannot be read") as fault:
        source[1]
    assert fault.value.code == "field"
