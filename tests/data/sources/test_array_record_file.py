"""ArrayRecord: JSON objects by number, images in base64."""

import base64
import pickle
from pathlib import Path
from typing import Any

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.array_record_file import ArrayRecordSource, write_array_record

ROWS: list[dict[str, Any]] = [
    {"id": "1", "image": "a.png", "text": "Kaixo ñ"},
    {"id": "2", "image": {"bytes": b"\x89PNG\x00", "path": "b.png"}, "n": 2.5},
    {"id": "3", "image": None, "images": [{"bytes": b"\xff"}, "c.png"]},
    {"id": "4", "meta": {"bytes": "12", "kind": "count"}},  # no image: it has other fields
]


def all_rows(source: ArrayRecordSource) -> list[Any]:
    return [source[number] for number in range(len(source))]


def write_records(path: Path, *records: bytes) -> Path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_rows_of_files_stand_one_after_the_other(tmp_path: Path):
    write_array_record(ROWS[:1], tmp_path / "a.array_record")
    write_array_record([], tmp_path / "b.arrayrecord")
    write_array_record(ROWS[1:], tmp_path / "c.arrayrecord")
    source = ArrayRecordSource(tmp_path)
    assert [file.name for file in source.files] == [
        "a.array_record",
        "b.arrayrecord",
        "c.arrayrecord",
    ]
    assert all_rows(source) == ROWS
    assert [source[n] for n in (3, 0, 2, 2)] == [ROWS[n] for n in (3, 0, 2, 2)]
    assert source.location(0) == f"{tmp_path / 'a.array_record'}[0]"
    assert source.location(2) == f"{tmp_path / 'c.arrayrecord'}[1]"
    for number in (-1, 4):
        with pytest.raises(IndexError):
            source[number]


def test_a_copy_in_another_process_reads_the_same(tmp_path: Path):
    write_array_record(ROWS, tmp_path / "a.array_record")
    source = ArrayRecordSource(tmp_path / "a.array_record")
    source[0]
    assert all_rows(pickle.loads(pickle.dumps(source))) == ROWS


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
IMAGES = st.fixed_dictionaries({"bytes": st.binary() | st.none()}, optional={"path": TEXTS})
VALUES = st.none() | st.booleans() | st.integers() | TEXTS | IMAGES | st.lists(TEXTS | IMAGES)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(rows=st.lists(st.dictionaries(TEXTS, VALUES), max_size=8))
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows):
    path = tmp_path / "a.array_record"
    path.unlink(missing_ok=True)
    write_array_record(rows, path)
    source = ArrayRecordSource(path)
    assert [source[n] for n in reversed(range(len(source)))] == rows[::-1]


def test_plain_bytes_are_written_as_an_image(tmp_path: Path):
    write_array_record([{"image": b"\x00\xff"}], tmp_path / "a.array_record")
    assert ArrayRecordSource(tmp_path)[0] == {"image": {"bytes": b"\x00\xff"}}


def test_records_made_elsewhere_are_read(tmp_path: Path):
    coded = base64.b64encode(b"picture").decode()
    record = f'{{"image": {{"bytes": "{coded}"}}}}'.encode()
    path = write_records(tmp_path / "a.array_record", record)
    assert ArrayRecordSource(path)[0] == {"image": {"bytes": b"picture"}}


@pytest.mark.parametrize(
    ("record", "code", "reason"),
    [
        (b'{"a": "\xff"}', "json", r"not UTF-8 text \(invalid start byte\)"),
        (b'{"a": }', "json", r"not JSON: Expecting value \(column 7\)"),
        (b"[" * 100_000, "json", "nested too deeply"),
        (b'{"a": ' + b"7" * 5000 + b"}", "json", "an integer of more digits"),
        (b"[1]", "field", "expected an object, found list"),
        (b'{"image": {"bytes": "a*b="}}', "field", "image: bytes are not base64 text"),
        ('{"image": {"bytes": "ñ"}}'.encode(), "field", "image: bytes are not base64 text"),
    ],
)
def test_a_record_that_cannot_be_read_is_a_fault(tmp_path, record, code, reason):
    source = ArrayRecordSource(write_records(tmp_path / "a.array_record", b"{}", record))
    assert source[0] == {}
    with pytest.raises(RecordError, match=reason) as fault:
        source[1]
    assert fault.value.code == code


def test_paths_without_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder$"):
        ArrayRecordSource(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r": no \.array_record or \.arrayrecord file in this"):
        ArrayRecordSource(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"x" * 100, lambda b: b[:70_000]])
def test_broken_files_are_refused(tmp_path: Path, damage):
    write_array_record(ROWS, tmp_path / "a.array_record")
    path = tmp_path / "b.array_record"
    write_array_record(ROWS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"b\.array_record: not an ArrayRecord file that can be"):
        ArrayRecordSource(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path):
    path = write_records(tmp_path / "a.array_record", b'{"n": 1}', b'{"n": 2}')
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"n": 2}', b'{"n": 3}'))
    source = ArrayRecordSource(path)
    assert source[0] == {"n": 1}
    with pytest.raises(ConfigError, match=r"a\.array_record\[1\]: not an ArrayRecord file that"):
        source[1]


def test_writing_refuses_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a\.json: expected a name that ends with"):
        write_array_record(ROWS, tmp_path / "a.json")
    path = tmp_path / "a.array_record"
    for value in (object(), float("nan"), "\ud800"):
        with pytest.raises(ConfigError, match=r"a\.array_record: row 1 cannot be JSON: "):
            write_array_record([{}, {"a": value}], path)
    assert list(tmp_path.iterdir()) == []
    write_array_record(ROWS, path)
    with pytest.raises(ConfigError, match=r"a\.array_record: exists"):
        write_array_record(ROWS, path)
