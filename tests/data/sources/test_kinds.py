"""The same captions from every kind of source: the same examples, the same pixels."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.images.decode import load_pixels
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.loader import Loader
from mllm_jax.data.sources.array_record_file import write_array_record

CAPTIONS = ["Katu bat.", "Txakur beltz bat belardian.", "Bi ume <image> korrika.", "Etxea."]


def encoded(number: int) -> bytes:
    rng = np.random.default_rng(number)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


ROWS = [
    {"id": f"r{n}", "image": {"bytes": encoded(n), "path": f"{n}.png"}, "caption": caption}
    for n, caption in enumerate(CAPTIONS)
]


def json_lines(folder: Path) -> StreamConfig:
    lines = []
    for n, row in enumerate(ROWS):
        (folder / f"{n}.png").write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({**row, "image": f"{n}.png"}))
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return StreamConfig(str(folder / "a.jsonl"))


def parquet(folder: Path) -> StreamConfig:
    for part in (0, 1):
        table = pa.Table.from_pylist(ROWS[2 * part : 2 * part + 2])
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=1)
    return StreamConfig(str(folder), kind="parquet")


def arrow(folder: Path) -> StreamConfig:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return StreamConfig(str(folder), kind="arrow")


def array_record(folder: Path) -> StreamConfig:
    write_array_record(ROWS, folder / "a.array_record")
    return StreamConfig(str(folder / "a.array_record"), kind="array_record")


def webdataset(folder: Path) -> StreamConfig:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for row in ROWS:
            for name, data in (("png", row["image"]["bytes"]), ("txt", row["caption"].encode())):
                member = tarfile.TarInfo(f"{row['id']}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    columns = {"id": "__key__", "image": "png", "caption": "txt"}
    return StreamConfig(str(folder / "a.tar"), kind="webdataset", columns=columns)


KINDS = [json_lines, parquet, arrow, array_record, webdataset]


@pytest.mark.parametrize("make", KINDS)
def test_examples_and_pixels(make, tmp_path, model, tokenizer, make_data):
    stream = make(tmp_path)
    fields = {"language": "eu", "format": "llama3", "layout": "caption", "columns": stream.columns}
    data = make_data({"s": StreamConfig(stream.path, kind=stream.kind, **fields)})
    (index,) = open_streams(Mixture(data, model, tokenizer))
    for n, row in enumerate(ROWS):
        example = index[n]
        assert example.record == f"s/r{n}"
        trained = example.tokens[example.weights > 0]
        assert tokenizer.decode(trained[:-1]) == CAPTIONS[n]
        assert (example.placeholders >= 0).sum() == 4
        (image,) = example.images
        pixels = load_pixels(image, 4, "crop")
        np.testing.assert_array_equal(pixels, load_pixels(row["image"]["bytes"], 4, "crop"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_of_all_kinds(workers, tmp_path, model, tokenizer, make_data):
    """Four languages, five kinds and documents; worker processes make the same batches."""
    languages, streams = ("eu", "it", "cy", "gl"), {}
    for n, make in enumerate(KINDS):
        folder = tmp_path / make.__name__
        folder.mkdir()
        made = make(folder)
        streams[make.__name__] = StreamConfig(
            made.path,
            language=languages[n % 4],
            format=("plain", "llama3", "llama31")[n % 3],
            kind=made.kind,
            layout="caption",
            columns=made.columns,
        )
    (tmp_path / "corpus.txt").write_text("Mendia eta ibaia.\n" * 7, encoding="utf-8")
    corpus = str(tmp_path / "corpus.txt")
    streams["corpus"] = StreamConfig(corpus, language="eu", kind="text", layout="text")
    data = make_data(streams, languages=languages, workers=workers, length=160)
    loader = Loader(data, model, tokenizer, 0)
    seen = {record for batch in loader.iterate(0, 8) for record in batch.records}
    assert {record.split("/")[0] for record in seen} == set(streams)
    assert len(seen) == 4 * len(KINDS) + 7
    one = Loader(data, model, tokenizer, 0).batch(5)
    (other,) = loader.iterate(5, 6)
    assert one.records == other.records
    for a, b in zip(one.batch, other.batch, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_split_has_an_index_of_its_own(tmp_path, model, tokenizer, make_data):
    """Of train and test shards in one folder each stream reads its own, and stays fresh."""
    table = pa.table({"caption": ["Katu bat."], "id": ["a"]})
    for name in ("train-0", "test-0", "test-1"):
        (tmp_path / "hub").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "hub" / f"{name}.parquet")
    same: dict[str, Any] = {"kind": "parquet", "layout": "text", "columns": {"text": "caption"}}
    streams = {
        split: StreamConfig(str(tmp_path / "hub"), split=split, language="eu", **same)
        for split in ("train", "test")
    }
    data = make_data({n: replace(s, skip={"duplicate_id": 0.9}) for n, s in streams.items()})
    asked = Mixture(data, model, tokenizer)
    assert [len(stream) for stream in open_streams(asked)] == [1, 1]
    assert len(open_streams(asked._replace(build=False))) == 2
    with pytest.raises(ConfigError, match=r"split='train': kind json has no splits"):
        StreamConfig("a.json", split="train")
