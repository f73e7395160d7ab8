"""Parquet and Arrow by number: every layout gives the rows that were written."""

import json
import pickle
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
from mllm_jax.data.sources import tables
from mllm_jax.data.sources.saved import list_arrow
from mllm_jax.data.sources.shards import Options
from mllm_jax.data.sources.tables import ArrowSource, ParquetSource

ROWS: list[dict[str, Any]] = [
    {
        "id": f"r{n}",
        "image": {"bytes": bytes([n]) * n, "path": f"{n}.png"} if n % 3 else None,
        "images": [{"bytes": b"x" * k, "path": None} for k in range(n % 4)],
        "conversations": [{"from": "human", "value": f"Zer da {n}?"}],
    }
    for n in range(12)
]
SCHEMA = pa.Table.from_pylist(ROWS[:5]).schema


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 4) -> None:
    pq.write_table(table(rows), path, row_group_size=group)


def write_stream(path: Path, rows: list[dict[str, Any]], group: int = 4, **options: Any) -> None:
    written = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, SCHEMA, options=written) as writer:
        writer.write_table(table(rows), max_chunksize=group)


def write_file(path: Path, rows: list[dict[str, Any]], group: int = 4, **options: Any) -> None:
    written = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, SCHEMA, options=written) as writer:
        writer.write_table(table(rows), max_chunksize=group)


def write_lz4_stream(path: Path, rows: list[dict[str, Any]], group: int = 4) -> None:
    write_stream(path, rows, group, compression="lz4")


def write_lz4_file(path: Path, rows: list[dict[str, Any]], group: int = 4) -> None:
    write_file(path, rows, group, compression="lz4")


KINDS = {
    "parquet": (ParquetSource, ".parquet", write_parquet),
    "stream": (ArrowSource, ".arrow", write_stream),
    "file": (ArrowSource, ".arrow", write_file),
    "lz4 stream": (ArrowSource, ".arrow", write_lz4_stream),
    "lz4 file": (ArrowSource, ".arrow", write_lz4_file),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], str, Callable[..., None]]:
    return KINDS[request.param]


def all_rows(source: Any) -> list[Any]:
    return [source[number] for number in range(len(source))]


def test_rows_of_shards_stand_one_after_the_other(tmp_path: Path, kind):
    open_source, suffix, write = kind
    (tmp_path / "more").mkdir()
    write(tmp_path / f"a{suffix}", ROWS[:5])
    write(tmp_path / f"b{suffix}", [])
    write(tmp_path / "more" / f"c{suffix}", ROWS[5:])
    source = open_source(tmp_path)
    assert [file.name for file in source.files] == [f"a{suffix}", f"b{suffix}", f"c{suffix}"]
    assert all_rows(source) == ROWS
    assert [source[n] for n in (11, 0, 7, 7, 4)] == [ROWS[n] for n in (11, 0, 7, 7, 4)]
    assert source.location(4) == f"{tmp_path / f'a{suffix}'}[4]"
    assert source.location(5) == f"{tmp_path / 'more' / f'c{suffix}'}[0]"
    for number in (-1, len(ROWS)):
        with pytest.raises(IndexError):
            source[number]


def test_a_copy_in_another_process_reads_the_same(tmp_path: Path, kind):
    open_source, suffix, write = kind
    write(tmp_path / f"a{suffix}", ROWS)
    source = open_source(tmp_path / f"a{suffix}")
    source[0]
    sent = pickle.dumps(source)
    assert b"Zer da" not in sent  # neither decoded groups nor open files travel
    assert all_rows(pickle.loads(sent)) == ROWS


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(
    shards=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    group=st.integers(1, 6),
    kept=st.sampled_from([0, 1000, 10**9]),
    data=st.data(),
)
def test_random_access_equals_sequential(tmp_path, monkeypatch, kind, shards, group, kept, data):
    open_source, suffix, write = kind
    monkeypatch.setattr(tables, "CACHE_BYTES", kept)
    for old in tmp_path.iterdir():
        old.unlink()
    expected: list[Any] = []
    for shard, size in enumerate(shards):
        rows = [ROWS[(len(expected) + n) % len(ROWS)] for n in range(size)]
        write(tmp_path / f"{shard}{suffix}", rows, group)
        expected += rows
    source = open_source(tmp_path)
    assert len(source) == len(expected)
    for number in data.draw(st.permutations(range(len(expected)))):
        assert source[number] == expected[number]
    assert [n for rows in source.row_groups() for n in rows] == list(range(len(expected)))
    assert max(map(len, source.row_groups()), default=0) <= group


def test_a_pass_by_row_groups_decodes_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_parquet(tmp_path / "a.parquet", ROWS)
    write_parquet(tmp_path / "b.parquet", ROWS)
    monkeypatch.setattr(tables, "CACHE_BYTES", 0)  # only the last group is kept
    decoded = []
    decode = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: decoded.append(group) or decode(self, group, **options),
    )
    source = ParquetSource(tmp_path)
    assert source.row_groups() == [range(n, n + 4) for n in range(0, 24, 4)]
    assert [source[n] for rows in source.row_groups() for n in rows] == ROWS * 2
    assert decoded == [0, 1, 2] * 2
    assert [source[n] for n in (0, 23, 0)] == [ROWS[n] for n in (0, 11, 0)]
    assert decoded == [0, 1, 2] * 2 + [0, 2, 0]


def test_kept_groups_are_bounded_by_bytes_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_parquet(tmp_path / "a.parquet", ROWS, group=1)
    source = ParquetSource(tmp_path)
    size = pq.ParquetFile(tmp_path / "a.parquet").read_row_group(11).nbytes
    monkeypatch.setattr(tables, "CACHE_BYTES", 2 * size)
    for number in range(12):
        source[number]
    kept = [source._groups[group][1] for group in source._groups]
    assert sum(kept) <= 2 * size and len(kept) >= 2
    assert next(reversed(source._groups)) == 11


def test_a_row_of_a_mapped_file_takes_no_memory(tmp_path: Path):
    rows = [{**row, "image": {"bytes": bytes(10**6), "path": None}} for row in ROWS]
    write_stream(tmp_path / "a.arrow", rows, group=12)
    source = ArrowSource(tmp_path)
    before = pa.total_allocated_bytes()
    assert source[3] == rows[3]
    assert pa.total_allocated_bytes() - before < 10**5


# ----------------------------------------------------------------- folders that `datasets` writes


def save_to_disk(folder: Path, names: list[str], **state: Any) -> None:
    """The layout of `Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        write_stream(folder / name, ROWS[number * 6 : number * 6 + 6])
    (folder / "dataset_info.json").write_text("{}")
    entries = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": entries} | state))


def test_a_saved_dataset_is_read_in_the_order_of_its_state(tmp_path: Path):
    save_to_disk(tmp_path / "d", ["data-2.arrow", "data-1.arrow"])
    write_stream(tmp_path / "d" / "cache-0a1b.arrow", ROWS)  # what `map` leaves there
    source = ArrowSource(tmp_path / "d")
    assert [file.name for file in source.files] == ["data-2.arrow", "data-1.arrow"]
    (note,) = list_arrow(tmp_path / "d", Options()).notes
    assert note.endswith("d: not in its state.json, not read: cache-0a1b.arrow")
    assert all_rows(source) == ROWS


def test_a_saved_dataset_must_be_whole_and_flat(tmp_path: Path):
    save_to_disk(tmp_path / "a", ["data-1.arrow", "data-2.arrow"])
    (tmp_path / "a" / "data-2.arrow").unlink()
    with pytest.raises(ConfigError, match=r"data-2\.arrow: no such file, but state\.json lists it"):
        ArrowSource(tmp_path / "a")
    save_to_disk(tmp_path / "b", ["data-1.arrow"], _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(ConfigError, match=r"table of indices; flatten it"):
        ArrowSource(tmp_path / "b")
    save_to_disk(tmp_path / "c", [])
    with pytest.raises(ConfigError, match=r"state\.json: lists no files"):
        ArrowSource(tmp_path / "c")


def test_several_splits_are_refused_and_named(tmp_path: Path):
    for split in ("train", "test"):
        save_to_disk(tmp_path / "d" / split, ["data-1.arrow", "data-2.arrow"])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    folder = tmp_path / "d"
    with pytest.raises(ConfigError) as error:
        ArrowSource(folder)
    assert str(error.value) == (
        f"{folder}: holds train and test, and a stream reads one split; choose by "
        "data.streams.*.split"
    )
    with pytest.raises(ConfigError, match=rf"give its folder as the path: {folder}$"):
        ArrowSource(tmp_path)
    assert list_arrow(folder, Options("test")).notes == [f"{folder}: not read: the splits train"]
    assert all_rows(ArrowSource(tmp_path / "d", Options("test"))) == ROWS
    assert all_rows(ArrowSource(tmp_path / "d" / "test")) == ROWS
    (folder / "dataset_dict.json").unlink()
    with pytest.raises(ConfigError, match=rf"give its folder as the path: {folder / 'test'}$"):
        ArrowSource(folder)


# -------------------------------------------------------------------------------------- refusals


def test_paths_without_shards_are_refused(tmp_path: Path, kind):
    open_source, suffix, _ = kind
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder$"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=rf": no \{suffix} file in this folder$"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.arrow",
        "/etc/passwd",
        "sub/a.arrow",
        "..",
        "",
        7,
        None,
        ["a.arrow"],
        "a\0",
        "\ud800",
    ],
)
def test_a_state_that_lists_other_places_is_refused(tmp_path: Path, name: Any):
    save_to_disk(tmp_path / "d", ["a.arrow"], _data_files=[{"filename": name}])
    write_stream(tmp_path / "secret.arrow", ROWS)
    message = r"state\.json: (filename=.*; expected the name of a file|not JSON: .* surrogate pair)"
    with pytest.raises(ConfigError, match=message):
        ArrowSource(tmp_path / "d")


@pytest.mark.parametrize(
    "state",
    [
        {"_data_files": "a.arrow"},
        {"_data_files": ["a.arrow"]},
        {"_data_files": [{"filename": "a.arrow"}] * 2},
        {"_data_files": {}},
        {"_indices_data_files": 3},
        [],
    ],
)
def test_a_state_of_other_types_is_refused(tmp_path: Path, state: Any):
    save_to_disk(tmp_path / "d", ["a.arrow"])
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"state\.json"):
        ArrowSource(tmp_path / "d")


@pytest.mark.parametrize("splits", [None, "train", [["train"]], ["../d"], [1]])
def test_splits_of_other_types_are_refused(tmp_path: Path, splits: Any):
    save_to_disk(tmp_path / "d", ["a.arrow"])
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ConfigError, match=r"dataset_dict\.json: splits"):
        ArrowSource(tmp_path / "d", Options("../d"))


def test_a_shard_that_the_state_lists_may_not_link_out(tmp_path: Path):
    save_to_disk(tmp_path / "d", ["a.arrow"])
    write_stream(tmp_path / "b.arrow", ROWS)
    (tmp_path / "d" / "a.arrow").unlink()
    (tmp_path / "d" / "a.arrow").symlink_to("../b.arrow")
    with pytest.raises(ConfigError, match=r"a\.arrow: a link out of"):
        ArrowSource(tmp_path / "d")


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b"no table", lambda b: b[: len(b) // 2]]
)
def test_broken_shards_are_refused(tmp_path: Path, kind, damage: Callable[[bytes], bytes]):
    open_source, suffix, write = kind
    write(tmp_path / f"a{suffix}", ROWS)
    write(tmp_path / f"b{suffix}", ROWS)
    path = tmp_path / f"b{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"b\{suffix}: not an? \w+ file that can be read: .+"):
        open_source(tmp_path)


def test_a_row_group_that_cannot_be_decoded_is_named(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS)
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))
    source = ParquetSource(path)
    assert source[0] == ROWS[0]
    with pytest.raises(ConfigError, match=r"a\.parquet: not a Parquet file that can be read: "):
        source[4]


def test_a_stream_without_its_end_or_with_another_behind_is_refused(tmp_path: Path):
    path = tmp_path / "a.arrow"
    write_stream(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])  # all batches, but not the mark behind them
    with pytest.raises(ConfigError, match=r"a\.arrow: no end-of-stream marker"):
        ArrowSource(path)
    path.write_bytes(whole * 2)
    with pytest.raises(ConfigError, match=r"a\.arrow: continues after the end of the stream"):
        ArrowSource(path)


def test_dictionaries_are_read_from_files_and_refused_in_streams(tmp_path: Path):
    words = pa.table({"word": pa.array(["bat", "bi", "bat"]).dictionary_encode()})
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, words.schema) as writer:
        writer.write_table(words)
    assert all_rows(ArrowSource(path)) == [{"word": "bat"}, {"word": "bi"}, {"word": "bat"}]
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, words.schema) as writer:
        writer.write_table(words)
    with pytest.raises(ConfigError, match=r"a\.arrow: a stream with dictionary-encoded columns"):
        ArrowSource(path)


def test_shards_need_the_same_columns(tmp_path: Path):
    pq.write_table(pa.table({"id": ["1"], "text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "id": ["2"]}), tmp_path / "b.parquet")
    assert all_rows(ParquetSource(tmp_path)) == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]
    pq.write_table(pa.table({"id": ["3"], "texts": ["c"]}), tmp_path / "c.parquet")
    with pytest.raises(ConfigError) as error:
        ParquetSource(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'c.parquet'}: lacks text and has texts besides, compared with "
        f"{tmp_path / 'a.parquet'}; all shards of a stream need the same columns"
    )
    twice = pa.table([pa.array([1]), pa.array([2])], names=["id", "id"])
    pq.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match=r"d\.parquet: several columns are called id"):
        ParquetSource(tmp_path / "d.parquet")


def test_text_that_is_not_utf8_is_a_fault(tmp_path: Path):
    offsets, data = pa.array([0, 2, 5], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfebai")
    broken = pa.table({"text": pa.StringArray.from_buffers(2, offsets, data)})
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, broken.schema) as writer:
        writer.write_table(broken)
    source = ArrowSource(tmp_path)
    assert source[1] == {"text": "bai"}
    with pytest.raises(RecordError, match="not UTF-8 text") as fault:
        source[0]
    assert fault.value.code == "text"
