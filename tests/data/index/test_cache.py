"""The index on disk: found again, stale when data changed, continued; faults counted."""

import dataclasses
import errno
import json
import os
import signal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm_jax.common.errors import ConfigError, RunError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.images import decode as images
from mllm_jax.data.index import build, cache, chunk
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.stream import report
from mllm_jax.data.records.parse import Record
from mllm_jax.data.tokenizer_report import TextCounts
from tests.data.pictures import noise


def talk(key: str, answer: str = "Katu bat.", **fields) -> dict:
    turns = [{"from": "human", "value": "Zer da?"}, {"from": "gpt", "value": answer}]
    return {"id": key, "language": "eu", "conversations": turns, **fields}


TALKS = [talk(f"k{n}", "Txakur beltz bat. " * (n % 5 + 1)) for n in range(22)]


@pytest.fixture
def mixture(write, model, tokenizer, make_data):
    """`mixture(records)`: a stream "s" of these records, or of the file that is there already."""

    def make(records=None, stream=None, workers=1, decode=False, may_build=True, **changes):
        path = write("s.jsonl", TALKS if records is None else records)
        given: dict[str, Any] = {"format": "llama3"} | (stream or {})
        config = StreamConfig(str(path), **given)
        data = make_data({"s": config}, **changes)
        return Mixture(data, model, tokenizer, workers, decode, may_build)

    return make


@pytest.fixture
def reads(monkeypatch):
    """The rows read from sources since it was asked for."""
    seen: list[int] = []
    old = build.read_chunk

    def read_chunk(reader, rows, look):
        seen.extend(rows)
        return old(reader, rows, look)

    monkeypatch.setattr(build, "read_chunk", read_chunk)
    return seen


def examples(stream):
    return [stream[n] for n in range(len(stream))]


def same(one, other) -> bool:
    return all(
        a.record == b.record and all(map(np.array_equal, a[:3], b[:3]))
        for a, b in zip(examples(one), examples(other), strict=True)
    )


def folders(tmp_path) -> list[str]:
    return sorted(
        f.name
        for f in (tmp_path / "s.jsonl.index").iterdir()
        if f.name[0] != "." and f.name != "plans"
    )


def test_an_index_is_read_once_and_gives_the_same_examples(mixture, reads, tmp_path):
    (built,) = open_streams(mixture())
    assert reads == list(range(22)) and len(folders(tmp_path)) == 1
    (opened,) = open_streams(mixture(may_build=False)._replace())
    assert len(reads) == 22 and same(built, opened)


def test_a_touched_file_is_fresh_and_a_changed_one_is_not(mixture, reads, tmp_path, capsys):
    asked = mixture()
    open_streams(asked)
    file = tmp_path / "s.jsonl"
    os.utime(file, ns=(1, 1))
    open_streams(asked)
    assert len(reads) == 22
    text = file.read_text()
    file.write_text(text.replace("beltz", "zuria", 1))  # of the same size
    (changed,) = open_streams(asked)
    assert len(reads) == 44 and len(folders(tmp_path)) == 1
    assert capsys.readouterr().out.count("stale") == 1
    del changed
    file.write_text(text)
    with pytest.raises(ConfigError, match="run `mllm-jax prepare --config FILE` once before"):
        open_streams(asked._replace(build=False))


def test_a_new_shard_is_noticed(model, tokenizer, make_data, tmp_path, reads):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Kaixo.")
    stream = StreamConfig(str(tmp_path / "texts"), language="eu", kind="text", layout="text")
    mixture = Mixture(make_data({"s": stream}), model, tokenizer)
    assert len(open_streams(mixture)[0]) == 1
    (tmp_path / "texts" / "b.txt").write_text("Agur.")
    assert len(open_streams(mixture)[0]) == 2
    (tmp_path / "texts" / "a.txt").unlink()
    assert len(open_streams(mixture)[0]) == 1


def test_a_file_edited_at_equal_size_and_time_is_noticed(mixture, reads, tmp_path):
    asked = mixture()
    open_streams(asked)
    file = tmp_path / "s.jsonl"
    stat, text = file.stat(), file.read_text()
    file.write_text(text.replace("beltz", "zuria", 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    open_streams(asked)
    assert len(reads) == 44


def test_images_of_another_folder_are_looked_at(mixture, write, picture, tmp_path):
    """Where the folder and the data move together, the index moves with them."""
    picture("d/a/0.png")
    (tmp_path / "d" / "b").mkdir()
    write("d/s.jsonl", [talk("k", image="0.png")])
    row = (tmp_path / "d" / "s.jsonl").read_text().replace("Zer da?", "<image>")
    (tmp_path / "d" / "s.jsonl").write_text(row)

    def asked(folder, images, build=True):
        stream = StreamConfig(f"{folder}/s.jsonl", f"{folder}/{images}", format="llama3")
        old = mixture(may_build=build)
        return old._replace(data=dataclasses.replace(old.data, streams={"s": stream}))

    assert len(open_streams(asked(tmp_path / "d", "a"))[0]) == 1
    with pytest.raises(ConfigError, match=r"b/0\.png: no such image file"):
        open_streams(asked(tmp_path / "d", "b"))
    (tmp_path / "d").rename(tmp_path / "e")
    assert len(open_streams(asked(tmp_path / "e", "a", build=False))[0]) == 1


ARRAYS = ["records.npy", "tokens.bin", "weights.bin", "hashes.bin", "ids.bin", "pictures.bin"]
ARRAYS += ["faults.jsonl", "duplicates.npy", "meta.json"]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "longer"])
def test_a_damaged_index_is_noticed_and_built_again(
    name, damage, mixture, reads, tmp_path, capsys, monkeypatch
):
    skip = {"skip": {"empty_answer": 0.1}}
    asked = mixture([*TALKS, talk("bad", "")], skip)
    (whole,) = open_streams(asked)
    file = tmp_path / "s.jsonl.index" / folders(tmp_path)[0] / name
    data = file.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:] if len(data) > 8 else b"x"
    changes = {"cut": data[: len(data) // 2], "flipped": flipped, "longer": data + b"\0"}
    file.unlink()
    if damage != "gone":
        file.write_bytes(changes[damage])
    if file.exists() and file.read_bytes() == data:  # an empty file cannot be cut
        return
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"no length index .*damaged, .*; run `mllm-jax prepare"):
        open_streams(asked._replace(build=False))
    (again,) = open_streams(asked)
    assert len(reads) == 46 and same(whole, again)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and "damaged" in printed[0] and "built again" in printed[0]


def test_parts_that_a_disk_lost_are_made_again(mixture, monkeypatch, tmp_path):
    (whole,) = open_streams(mixture(index="elsewhere"))
    monkeypatch.setattr(build, "CHUNK_ROWS", 5)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "mark_duplicates", stop)
    monkeypatch.setattr(build.shutil, "rmtree", lambda folder: None)  # the parts stay
    with pytest.raises(KeyboardInterrupt):
        open_streams(mixture())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (partial,) = (tmp_path / "s.jsonl.index").glob(".*.partial*")
    parts = sorted((partial / "parts").iterdir())
    for part_file, data in zip(parts[:3], (b"", b"PK", parts[2].read_bytes()[:-30]), strict=True):
        part_file.write_bytes(data)
    monkeypatch.setattr(build, "CHUNK_ROWS", 5)
    (again,) = open_streams(mixture())
    assert same(whole, again)


def test_bad_data_leaves_no_partial_index(model, tokenizer, make_data, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["kaixo"] * 9}), path, use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 20 + data[24:])
    stream = StreamConfig(str(path), language="eu", kind="parquet", layout="text")
    with pytest.raises(ConfigError, match=r"a\.parquet: not a Parquet file that can be read"):
        open_streams(Mixture(make_data({"s": stream}), model, tokenizer))
    assert not list((tmp_path / "a.parquet.index").rglob("*.bin"))


def test_links_name_folders(mixture, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.streams\.s\.links: 'nowhere': no such folder"):
        open_streams(mixture(stream={"links": ("nowhere",)}))


def test_what_is_not_read_is_said(model, tokenizer, make_data, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Kaixo.")
    stream = StreamConfig(str(tmp_path / "texts"), language="eu", kind="text", layout="text")
    mixture = Mixture(make_data({"s": stream}), model, tokenizer)
    assert open_streams(mixture)[0].notes == []
    (tmp_path / "texts" / "b.csv").touch()
    (index,) = open_streams(mixture._replace(build=False))
    assert index.notes == [f"{tmp_path / 'texts'}: not read, of other kinds: b.csv"]


def test_an_index_that_cannot_be_written_says_where_else(mixture, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written to .* name another folder under"):
        open_streams(mixture(index=str(tmp_path / "file")))


def test_another_format_is_another_index(mixture, reads, tmp_path):
    open_streams(mixture())
    open_streams(mixture(stream={"format": "llama31"}))
    assert len(reads) == 44 and len(folders(tmp_path)) == 2
    open_streams(mixture())
    assert len(reads) == 44


@pytest.mark.parametrize(
    "other",
    [
        {"max_pixels": 10**6},
        {"languages": ("eu", "en", "it")},
        {"stream": {"ignore": ("note",)}},
        {"stream": {"columns": {"language": "language"}}},
        {"stream": {"language": "eu"}},
        {"stream": {"train_control_tokens": True}},
        {"stream": {"drop_token_zero": True}},
        {"stream": {"image_first": True}},
        {"stream": {"train_end_of_turn": False}},
    ],
    ids=str,
)
def test_whatever_decides_what_is_in_it_is_another_index(mixture, tmp_path, other):
    open_streams(mixture())
    open_streams(mixture(**other))
    assert len(folders(tmp_path)) == 2


def test_streams_of_one_format_may_be_switched_otherwise(write, model, tokenizer, make_data):
    """What a switch changes in a stream it changes in no other."""
    path = str(write("s.jsonl", TALKS[:3]))
    usual = StreamConfig(path, format="llama3")
    other = dataclasses.replace(usual, train_control_tokens=True)
    first, second = open_streams(Mixture(make_data({"a": usual, "b": other}), model, tokenizer))
    assert np.array_equal(first.sizes, second.sizes)
    a, b = ([int(stream[n].weights.sum()) for n in range(3)] for stream in (first, second))
    # BOS, two marks and the end of the question, and the answer's header: two marks, its name, \n\n
    header = len(tokenizer("assistant")["input_ids"]) + 3
    assert [y - x for x, y in zip(a, b, strict=True)] == [4 + header] * 3


def test_decoding_is_deeper_than_looking(mixture, reads):
    open_streams(mixture())
    open_streams(mixture(decode=True))
    assert len(reads) == 44
    open_streams(mixture())
    assert len(reads) == 44


@pytest.mark.parametrize("decode", [False, True])
def test_a_build_that_was_stopped_goes_on(mixture, reads, monkeypatch, decode):
    """With what it had read, unless images are to be looked at more deeply now."""
    (whole,) = open_streams(mixture(index="elsewhere"))
    monkeypatch.setattr(build, "CHUNK_ROWS", 5)
    save, count = build.save_chunk, []

    def stop(part, file):
        count.append(file)
        if len(count) == 4:
            raise KeyboardInterrupt
        save(part, file)

    monkeypatch.setattr(build, "save_chunk", stop)
    reads.clear()
    with pytest.raises(KeyboardInterrupt):
        open_streams(mixture())
    reads.clear()
    monkeypatch.setattr(build, "save_chunk", save)
    (joined,) = open_streams(mixture(decode=decode))
    assert reads == list(range(0 if decode else 15, 22)) and same(whole, joined)


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("format", ["plain", "llama3"])
def test_processes_build_the_same(format, mixture, monkeypatch):
    """Control tokens that a text names stay text in them, too."""
    marked = [talk("m1", "<|eot_id|> a <image>"), talk("m2", "<|begin_of_text|>"), *TALKS]
    stream = {"format": format}
    (alone,) = open_streams(mixture(marked, stream, index="alone"))
    monkeypatch.setattr(build, "CHUNK_ROWS", 6)
    (joined,) = open_streams(mixture(marked, stream, workers=2))
    assert same(alone, joined)


class Deadly:
    """A source whose rows kill the process that reads them."""

    notes = ()

    def __init__(self, path):
        self.files = []

    def __len__(self):
        return 40

    def __getitem__(self, number):
        os.kill(os.getpid(), signal.SIGKILL)

    def location(self, number):
        return ""


def test_a_killed_worker_ends_the_build_with_its_rows(mixture, monkeypatch):
    monkeypatch.setattr(cache, "open_source", lambda stream: Deadly(stream.path))
    monkeypatch.setattr(build, "CHUNK_ROWS", 10)
    said = (
        r"index-worker-0 \(process \d+\) was killed by SIGKILL while it read data\.streams\.s from "
    )
    with pytest.raises(RunError, match=said + r"row 0 on .*start again to continue from here"):
        open_streams(mixture(workers=2))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["load_chunk", "save_chunk"])
def test_a_disk_that_is_full_ends_the_build_with_one_line(what, workers, mixture, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "save_chunk" and workers == 2:  # in the processes
        monkeypatch.setattr(build, "_Maker", FullMaker)
    monkeypatch.setattr(build, what, full)
    monkeypatch.setattr(build, "CHUNK_ROWS", 6)
    with pytest.raises(
        RunError,
        match=r"data\.streams\.s: its index cannot be written to [^ ]*\.index: the disk is",
    ):
        open_streams(mixture(workers=workers))


class FullMaker(build._Maker):
    """Brings the full disk along."""

    def __call__(self, number: int) -> int:
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        build.save_chunk = full
        return super().__call__(number)


def test_a_tokenizer_that_cannot_end_documents_ends_the_build():
    """It is no fault of every document."""

    class Endless(Chat):
        def __init__(self):
            pass

        def completions(self, texts):
            raise ConfigError("no eos_token")

    item = chunk._Good(0, Record("a", (), (), "eu", "Kaixo."), [], b"", None)
    with pytest.raises(ConfigError, match="no eos_token"):
        chunk._encode(Endless(), [item])


def test_faults_end_the_load_unless_the_config_allows_them_by_name(mixture):
    empty, twice = talk("empty", " "), TALKS[1]
    records = [*TALKS, empty, twice]
    with pytest.raises(ConfigError) as error:
        open_streams(mixture(records))
    message = str(error.value)
    assert "2 of 24 records refused" in message and "\n" not in message
    assert "record 'empty'" in message and "s.jsonl:23" in message
    assert "data.streams.s.skip: {duplicate_id: 0.042, empty_answer: 0.042}" in message
    with pytest.raises(ConfigError) as error:
        open_streams(mixture([empty]))
    assert "1 of 1 records refused" in str(error.value)
    assert "skip" not in str(error.value), "nothing would be left"
    skip = {"empty_answer": 0.05, "duplicate_id": 0.05}
    (stream,) = open_streams(mixture(records, {"skip": skip}))
    found = report(stream, ("eu", "en"))
    assert (found.records, found.used) == (24, 22)
    assert found.faults == {"duplicate_id": 1, "empty_answer": 1}
    assert [e.record for e in examples(stream)] == [f"s/k{n}" for n in range(22)]
    with pytest.raises(ConfigError, match=r"1 of 24 records refused: record 'empty'"):
        open_streams(mixture(records, {"skip": skip | {"empty_answer": 0.04}}))


def test_faults_are_written_with_where_and_why(mixture, tmp_path):
    open_streams(mixture([*TALKS, talk("empty", "")], {"skip": {"empty_answer": 0.1}}))
    lines = (tmp_path / "s.jsonl.index" / folders(tmp_path)[0] / "faults.jsonl").read_text()
    (line,) = map(json.loads, lines.splitlines())
    assert (line["row"], line["id"], line["code"]) == (22, "empty", "empty_answer")
    assert line["where"].endswith("s.jsonl:23") and "the answer is empty" in line["reason"]


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        ({"image_path": 0.1}, "data.streams.s.skip.image_path: a path that leaves"),
        (
            {"empty_anser": 0.1},
            "data.streams.s.skip.empty_anser: no such record error; did you mean ",
        ),
    ],
)
def test_what_cannot_be_skipped(mixture, skip, said):
    with pytest.raises(ConfigError, match=said):
        open_streams(mixture(stream={"skip": skip}))


def test_a_path_out_of_the_folder_is_refused_whatever_is_allowed(mixture):
    bad = talk("out", image="../a.png")
    skip = dict.fromkeys(("image_missing", "image_count"), 1.0)
    with pytest.raises(ConfigError, match=r"leaves the image folder"):
        open_streams(mixture([*TALKS, bad], {"skip": skip}))


def test_documents_are_cut_into_pieces_that_train_every_token_once(mixture, tokenizer):
    words = "txakur beltz bat belardian korrika eta ume bi atzetik "
    texts = [words * n for n in (1, 9, 30)] + ["bat", ""]
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    stream = {"layout": "text", "language": "eu", "skip": {"empty_answer": 0.5}}
    (pieces,) = open_streams(mixture(rows, stream, length=32))
    assert pieces.total == 5 and pieces.faults == {"empty_answer": 1}
    found: dict[str, list] = {}
    for example in examples(pieces):
        assert len(example.tokens) <= 32 and len(example.tokens) > 1
        assert example.weights[0] == 0 and example.weights[1:].all()
        found.setdefault(example.record.split("#")[0], []).append(example.tokens)
    end = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    for n, text in enumerate(texts[:-1]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        joined = [*found[f"s/d{n}"][0]]
        for piece in found[f"s/d{n}"][1:]:
            assert piece[0] == joined[-1], "pieces share one token"
            joined += [*piece[1:]]
        assert joined == [tokenizer.bos_token_id, *ids, end]
    assert pieces.trained == sum(int(e.weights.sum()) for e in examples(pieces))
    assert pieces.sizes.tolist() == [len(e.tokens) for e in examples(pieces)]


def test_special_tokens_in_a_document_stay_text(mixture, tokenizer):
    rows = [{"text": "a <|eot_id|> <image> b"}]
    (stream,) = open_streams(mixture(rows, {"layout": "text", "language": "eu"}))
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<image>")}
    assert not special & set(stream[0].tokens[1:-1].tolist())


def test_the_text_of_each_language_is_counted(mixture, tokenizer):
    rows = [talk("a", "Katu bat"), talk("b", "cat", language="en"), talk("c", "a <|eot_id|> b")]
    (stream,) = open_streams(mixture(rows))
    lengths = {
        text: len(tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"])
        for text in ("Katu bat", "cat", "a <|eot_id|> b")
    }
    assert stream.text_counts(("eu", "en")) == {
        "eu": TextCounts(lengths["Katu bat"] + lengths["a <|eot_id|> b"], 5, 8 + 14),
        "en": TextCounts(lengths["cat"], 1, 3),
    }


def test_a_stream_without_one_good_record(mixture):
    with pytest.raises(ConfigError, match=r"1 of 1 records refused: record 'a'"):
        open_streams(mixture([talk("a", "")]))
    with pytest.raises(ConfigError, match=r"data.streams.s: no record fits"):
        open_streams(mixture([talk("a", "")], {"skip": {"empty_answer": 1.0}}))
    with pytest.raises(ConfigError, match=r"s.jsonl: no records \(data.streams.s.path\)"):
        open_streams(mixture(""))


def test_a_picture_of_several_questions_is_decoded_once(mixture, tmp_path, monkeypatch):
    for n in range(2):
        noise(8, 6).save(tmp_path / f"{n}.png")
    seen = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda i, m: seen.append(i) or decode(i, m))
    monkeypatch.setattr(build, "CHUNK_ROWS", 2)  # remembered from part to part
    talks = [talk(f"k{n}", image=f"{n // 3}.png") for n in range(6)]
    for one in talks:
        one["conversations"][0]["value"] = "<image>\nZer da?"
    (stream,) = open_streams(mixture(talks, {"images": str(tmp_path)}, decode=True))
    assert len(stream) == 6 and seen == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]


def test_a_document_of_exactly_the_length_is_one_piece(mixture):
    rows = [{"id": "d", "text": "txakur beltz bat belardian korrika"}]
    (whole,) = open_streams(mixture(rows, {"layout": "text", "language": "eu"}))
    size = len(whole.tokens(0).tokens)
    for length, pieces in ((size + 1, 1), (size, 1), (size - 1, 2)):
        (stream,) = open_streams(mixture(rows, {"layout": "text", "language": "eu"}, length=length))
        assert len(stream) == pieces
        assert sum(len(e.tokens) for e in examples(stream)) == size + pieces - 1
