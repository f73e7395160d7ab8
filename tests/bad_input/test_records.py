"""Bad records and bad files of data, by `prepare`; and bad data to evaluate on."""

import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import Case, Change, cut_file, stage, write

PREPARE = ["prepare", "--config", "stage.yaml", "--workers", "1"]
EVALUATE = ["evaluate", "model", "--data", "questions.json", "--images", "data/images"]
EVALUATE += ["--out", "scores"]
TURNS = [{"from": "human", "value": "<image>\nZer da?"}, {"from": "gpt", "value": "gorria"}]
RECORD = {"id": "7", "image": "0.png", "conversations": TURNS, "language": "eu"}
MESSAGES = [{"role": "user", "content": "Zer da?"}, {"role": "assistant", "content": "gorria"}]
PNG = b"\x89PNG\r\n\x1a\n"


def changed(**fields: Any) -> dict[str, Any]:
    """A good record with other fields; None removes one."""
    return {name: x for name, x in {**RECORD, **fields}.items() if x is not None}


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """A record with these turns and no image."""
    return changed(
        image=None, conversations=[{"from": who, "value": value} for who, value in pairs]
    )


# name -> (record, part of the message)
RECORDS: dict[str, tuple[Any, str]] = {
    "a number": (7, "object"),
    "a list": ([], "object"),
    "null": (None, "None"),
    "no turns": (changed(conversations=None), "conversations"),
    "turns that are text": (changed(conversations="a"), "conversations"),
    "turns that are empty": (changed(conversations=[]), "7"),
    "a turn that is a number": (changed(conversations=[7]), "7"),
    "a turn without text": (changed(conversations=[{"from": "human"}]), "value"),
    "an unknown role": (turns(("robot", "a"), ("gpt", "b")), "robot"),
    "a role that is a list": (turns((["human"], "a"), ("gpt", "b")), "human"),
    "an answer first": (turns(("gpt", "a")), "turn"),
    "two questions": (turns(("human", "a"), ("human", "b"), ("gpt", "c")), "turn"),
    "a question last": (turns(("human", "a")), "turn"),
    "an empty answer": (turns(("human", "a"), ("gpt", " ")), "answer"),
    "text that is a number": (turns(("human", 7), ("gpt", "b")), "7"),
    "text with NUL": (turns(("human", "a\0"), ("gpt", "b")), "NUL"),
    "half a surrogate pair": (turns(("human", "a\ud800"), ("gpt", "b")), "surrogate"),
    "an id that is a list": (changed(id=[1]), "id"),
    "an id with NUL": (changed(id="a\0"), "id"),
    "another language": (changed(language="gl"), "gl"),
    "a language that is a number": (changed(language=7), "7"),
    "a language of half a surrogate": (changed(language="\ud800"), "language"),
    "more marks than images": (
        changed(conversations=[{"from": "human", "value": "<image><image>"}, TURNS[1]]),
        "2 <image>",
    ),
    "an image without a mark": (
        changed(conversations=[{"from": "human", "value": "a"}, TURNS[1]]),
        "<image>",
    ),
    "an image that is not there": (changed(image="none.png"), "none.png"),
    "an image that is a folder": (changed(image="."), "image"),
    "an image outside": (changed(image="../../stage.yaml"), "leaves"),
    "an absolute image": (changed(image="/etc/passwd"), "/etc/passwd"),
    "an image of an address": (changed(image="https://example.org/a.png"), "https"),
    "an image of a data URI": (changed(image="data:image/png;base64," + "A" * 200_000), "data:"),
    "an image in base64": (changed(image="iVBORw0KGgo" + "A" * 2_000_000), "iVBORw0KGgo"),
    "an image that is a number": (changed(image=7), "7"),
    "an image with NUL": (changed(image="a\0.png"), "image"),
    "an image of a long name": (changed(image="o" * 5000), "ooo"),
    "an empty image": (changed(image="empty.png"), "empty.png"),
    "an image of text": (changed(image="text.png"), "text.png"),
    "an image that is cut": (changed(image="cut.png"), "cut.png"),
    "an image of a hundred million columns": (changed(image="wide.png"), "wide.png"),
    "an image that moves": (changed(image="moves.gif"), "moves.gif"),
    "images beside image": (changed(images=["1.png"]), "images"),
    "images instead of image": (changed(image=None, images=["0.png"]), "images"),
    "a video": (changed(video="a.mp4"), "video"),
    "videos": (changed(videos=["a.mp4"]), "videos"),
    "audio": (changed(audio="a.wav"), "audio"),
    "a system text": (changed(system="Be kind."), "system"),
    "tools": (changed(tools=[{"name": "search"}]), "tools"),
    "a turn without loss": (changed(conversations=[TURNS[0], TURNS[1] | {"loss": False}]), "loss"),
    "a turn with images": (
        changed(conversations=[TURNS[0] | {"images": ["1.png"]}, TURNS[1]]),
        "images",
    ),
    "conversations and messages": (changed(messages=MESSAGES), "messages"),
    "a typed part of another type": (
        {
            "id": "7",
            "messages": [
                {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]},
                MESSAGES[1],
            ],
            "language": "eu",
        },
        "video",
    ),
    "a typed image of another path": (
        {
            "id": "7",
            "image": "0.png",
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "1.png"}]},
                MESSAGES[1],
            ],
            "language": "eu",
        },
        "image",
    ),
    "content that is a number": (
        {"id": "7", "messages": [{"role": "user", "content": 7}, MESSAGES[1]], "language": "eu"},
        "7",
    ),
    "longer than a row": (turns(("human", "a" * 3000), ("gpt", "b")), "tokens"),
    "longer than any row": (turns(("human", "zu " * 3_000_000), ("gpt", "b")), "characters"),
    "deep": (json.loads("[" * 500 + "]" * 500), "object"),
}

# name -> (the whole file, part of the message)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "eu.json"),
    "not JSON": ("{", "eu.json"),
    "an empty list": ("[]", "eu.json"),
    "an object": ("{}", "eu.json"),
    "a number": ("7", "eu.json"),
    "not UTF-8": (b'[{"id": "a\xf1o"}]', "eu.json"),
    "UTF-16": ("[]".encode("utf-16"), "eu.json"),
    "nested deeply": ("[" * 100_000, "eu.json"),
    "an integer of 5,000 digits": ('[{"id": ' + "9" * 5000 + "}]", "eu.json"),
    "cut in a record": ('[{"id": 1, "conversations": [', "eu.json"),
    "binary": (bytes(range(256)) * 100, "eu.json"),
}

SETTINGS: dict[str, dict[str, Any]] = {
    "parquet": {"path": "data/captions.parquet", "kind": "parquet", "layout": "caption"},
    "webdataset": {
        "path": "data/captions.tar", "kind": "webdataset", "layout": "conceptual_captions",
    },
    "jsonl": {"path": "data/eu.jsonl"},
    "text": {"path": "data/texts", "kind": "text", "layout": "text"},
    "arrow": {"path": "data/saved", "kind": "arrow", "layout": "caption"},
    "array_record": {"path": "data/a.array_record", "kind": "array_record"},
}  # fmt: skip


def stream(kind: str, *changes: Change) -> Change:
    """stage.yaml reads data of this kind, changed."""
    fields = {"images": "data/images", "language": "eu", "format": "plain"} | SETTINGS[kind]
    if kind in ("jsonl", "array_record"):
        fields["format"] = "llama3"
    if kind == "webdataset":
        del fields["images"]

    def change(place: Path) -> None:
        stage(data__streams={"s": fields})(place)
        for one in changes:
            one(place)

    return change


def pictures(place: Path) -> None:
    """The odd pictures that records here name."""
    images = place / "data" / "images"
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_text("not a picture")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:60])
    size = struct.pack(">II", 100_000_000, 1)
    chunk = b"IHDR" + size + b"\x08\x02\0\0\0"
    import zlib

    crc = struct.pack(">I", zlib.crc32(chunk))
    (images / "wide.png").write_bytes(PNG + b"\0\0\0\x0d" + chunk + crc + b"\0" * 64)
    from PIL import Image

    frames = [Image.new("RGB", (4, 4), (80 * i, 0, 0)) for i in range(3)]
    frames[0].save(images / "moves.gif", save_all=True, append_images=frames[1:])


def records(*items: Any) -> Change:
    """data/eu.json holds these, and the odd pictures are there."""

    def change(place: Path) -> None:
        pictures(place)
        (place / "data" / "eu.json").write_text(json.dumps([*items]))

    return change


def tar(header: Callable[[bytearray], Any], length: int = 512) -> Change:
    """Changes the first header of captions.tar and writes its checksum again."""

    def change(place: Path) -> None:
        path = place / "data" / "captions.tar"
        data = bytearray(path.read_bytes())
        header(data)
        data[148:156] = b" " * 8
        data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
        path.write_bytes(bytes(data))

    return change


def pax(fields: dict[str, str]) -> Change:
    """captions.tar with a pax header before its only member."""

    def change(place: Path) -> None:
        with tarfile.open(place / "data" / "captions.tar", "w", format=tarfile.PAX_FORMAT) as out:
            info = tarfile.TarInfo("a.txt")
            info.pax_headers = fields
            out.addfile(info)

    return change


def link(place: Path) -> None:
    """captions.tar holds a link."""
    with tarfile.open(place / "data" / "captions.tar", "w") as out:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(info)


def arrow_state(state: Any) -> Change:
    """data/saved is a folder of the datasets library with this state.json."""

    def change(place: Path) -> None:
        folder = place / "data" / "saved"
        folder.mkdir()
        text = state if isinstance(state, str) else json.dumps(state)
        (folder / "state.json").write_text(text)
        (folder / "dataset_info.json").write_text("{}")
        (folder / "data-00000-of-00001.arrow").write_bytes(b"ARROW1\0\0" + b"\0" * 100)

    return change


def shards(*names: str) -> Change:
    """data/many holds copies of captions.parquet, and the stream reads the folder."""

    def change(place: Path) -> None:
        data = (place / "data" / "captions.parquet").read_bytes()
        for name in names:
            path = place / "data" / "many" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        SETTING = {"path": "data/many", "kind": "parquet", "layout": "caption"}
        fields = SETTING | {"images": "data/images", "language": "eu", "format": "plain"}
        stage(data__streams={"s": fields})(place)

    return change


def patched(name: str, old: bytes, new: bytes) -> Change:
    """Replaces bytes of a file."""

    def change(place: Path) -> None:
        data = (place / name).read_bytes()
        assert old in data, (name, old)
        (place / name).write_bytes(data.replace(old, new))

    return change


FILES: dict[str, tuple[Change, str]] = {
    "parquet: empty": (stream("parquet", write("data/captions.parquet", b"")), "captions.parquet"),
    "parquet: text": (stream("parquet", write("data/captions.parquet", "a")), "captions.parquet"),
    "parquet: cut": (stream("parquet", cut_file("data/captions.parquet", -9)), "captions.parquet"),
    "parquet: garbage inside": (
        stream("parquet", write("data/captions.parquet", b"PAR1" + b"\xff" * 99 + b"PAR1")),
        "captions.parquet",
    ),
    "parquet: a footer of 4 GB": (
        stream("parquet", write("data/captions.parquet", b"PAR1" + b"\xff" * 8 + b"PAR1")),
        "captions.parquet",
    ),
    "parquet: no column": (
        stream("parquet", patched("data/captions.parquet", b"caption", b"kaption")),
        "caption",
    ),
    "parquet: of the wrong layout": (
        lambda place: (
            stream("parquet")(place),
            stage(
                data__streams={
                    "s": {"path": "data/captions.parquet", "kind": "parquet", "layout": "wit"}
                }
            )(place),
        ),
        "caption_reference_description",
    ),
    "tar: empty": (stream("webdataset", write("data/captions.tar", b"")), "captions.tar"),
    "tar: text": (stream("webdataset", write("data/captions.tar", "a" * 2000)), "captions.tar"),
    "tar: cut": (stream("webdataset", cut_file("data/captions.tar", 700)), "captions.tar"),
    "tar: zeros": (stream("webdataset", write("data/captions.tar", b"\0" * 10240)), "captions.tar"),
    "tar: compressed": (
        stream("webdataset", write("data/captions.tar", b"\x1f\x8b" + b"\0" * 600)),
        "compressed",
    ),
    "tar: a wrong checksum": (
        stream("webdataset", patched("data/captions.tar", b"0.png", b"1.png")),
        "captions.tar",
    ),
    "tar: a negative size": (
        stream("webdataset", tar(lambda d: d.__setitem__(slice(124, 136), b"-0000000001\0"))),
        "captions.tar",
    ),
    "tar: a size of 2^62": (
        stream(
            "webdataset",
            tar(lambda d: d.__setitem__(slice(124, 136), b"\x80" + (2**62).to_bytes(11, "big"))),
        ),
        "captions.tar",
    ),
    "tar: a size of all ones": (
        stream("webdataset", tar(lambda d: d.__setitem__(slice(124, 136), b"\xff" * 12))),
        "captions.tar",
    ),
    "tar: a size that is text": (
        stream("webdataset", tar(lambda d: d.__setitem__(slice(124, 136), b"abcdefghijk\0"))),
        "captions.tar",
    ),
    "tar: a type of nobody": (
        stream("webdataset", tar(lambda d: d.__setitem__(156, ord("Z")))),
        "captions.tar",
    ),
    "tar: a negative size in a pax header": (stream("webdataset", pax({"size": "-512"})), "tar"),
    "tar: a size of text in a pax header": (stream("webdataset", pax({"size": "ten"})), "tar"),
    "tar: a size of 5,000 digits": (stream("webdataset", pax({"size": "9" * 5000})), "tar"),
    "tar: sparse": (stream("webdataset", pax({"GNU.sparse.major": "1"})), "sparse"),
    "tar: a link": (stream("webdataset", link), "link"),
    "tar: no samples": (
        stream("webdataset", lambda place: tarfile.open(place / "data/captions.tar", "w").close()),
        "captions.tar",
    ),
    "jsonl: not JSON": (stream("jsonl", write("data/eu.jsonl", '{"id": 1}\n{\n')), "eu.jsonl"),
    "jsonl: not UTF-8": (stream("jsonl", write("data/eu.jsonl", b'{"id": "\xff"}\n')), "eu.jsonl"),
    "jsonl: a huge number": (
        stream("jsonl", write("data/eu.jsonl", '{"id": ' + "9" * 5000 + "}\n")),
        "eu.jsonl",
    ),
    "jsonl: deep": (stream("jsonl", write("data/eu.jsonl", "[" * 99_999 + "\n")), "eu.jsonl"),
    "jsonl: empty": (stream("jsonl", write("data/eu.jsonl", "\n\n")), "eu.jsonl"),
    "jsonl: compressed": (
        stream("jsonl", write("data/eu.jsonl", b"\x1f\x8b" + b"\0" * 99)),
        "eu.jsonl",
    ),
    "text: an empty folder": (
        stream("text", lambda place: (place / "data/texts").mkdir()),
        "data/texts",
    ),
    "text: not UTF-8": (stream("text", write("data/texts/a.txt", b"a\xf1o")), "a.txt"),
    "text: with NUL": (stream("text", write("data/texts/a.txt", "a\0b")), "a.txt"),
    "text: only compressed": (stream("text", write("data/texts/a.txt.gz", b"\x1f\x8b")), "a.txt"),
    "text: some compressed": (
        stream("text", write("data/texts/a.txt", "bai"), write("data/texts/b.txt.gz", b"\x1f")),
        "b.txt.gz",
    ),
    "text: a link out": (
        stream(
            "text",
            write("data/texts/a.txt", "bai"),
            lambda place: (place / "data/texts/b.txt").symlink_to("/etc/hostname"),
        ),
        "b.txt",
    ),
    "text: train and test": (
        stream("text", write("data/texts/train/a.txt", "bai"), write("data/texts/test/b.txt", "e")),
        "test",
    ),
    "arrow: no folder": (stream("arrow"), "data/saved"),
    "arrow: no shard": (stream("arrow", arrow_state({"_data_files": []})), "data/saved"),
    "arrow: state that is a list": (stream("arrow", arrow_state([])), "state.json"),
    "arrow: state cut short": (stream("arrow", arrow_state('{"_data')), "state.json"),
    "arrow: files that are a number": (stream("arrow", arrow_state({"_data_files": 7})), "state"),
    "arrow: a file of a number": (
        stream("arrow", arrow_state({"_data_files": [{"filename": 7}]})),
        "state.json",
    ),
    "arrow: a file without a name": (
        stream("arrow", arrow_state({"_data_files": [{}]})),
        "state.json",
    ),
    "arrow: a file outside": (
        stream("arrow", arrow_state({"_data_files": [{"filename": "../captions.parquet"}]})),
        "captions.parquet",
    ),
    "arrow: an absolute file": (
        stream("arrow", arrow_state({"_data_files": [{"filename": "/etc/passwd"}]})),
        "passwd",
    ),
    "arrow: garbage": (
        stream("arrow", arrow_state({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})),
        "data-00000-of-00001.arrow",
    ),
    "array_record: empty": (stream("array_record", write("data/a.array_record", b"")), "a.array"),
    "array_record: garbage": (
        stream("array_record", write("data/a.array_record", b"\xff" * 70_000)),
        "a.array_record",
    ),
    "array_record: cut": (
        stream("array_record", write("data/a.array_record", b"riegeli" * 20)),
        "a.array_record",
    ),
    "shards: two splits": (shards("a-train.parquet", "a-test.parquet"), "test"),
    "shards: two splits in folders": (shards("x_train/a.parquet", "x_dev/a.parquet"), "split"),
    "shards: some of a split": (shards("train-0.parquet", "other.parquet"), "other.parquet"),
    "shards: one missing": (shards("a-00000-of-00002.parquet"), "missing"),
    "shards: two counts": (
        shards("a-00000-of-00001.parquet", "a-00000-of-00002.parquet", "a-00001-of-00002.parquet"),
        "of-0000",
    ),
    "shards: one compressed": (shards("a.parquet", "b.parquet.gz"), "b.parquet.gz"),
    "no such folder": (stage(data__streams__eu__path="data/none"), "data/none"),
}

CASES = [
    Case(f"record: {name}", PREPARE, records(changed(id="1"), record), said)
    for name, (record, said) in RECORDS.items()
]
CASES += [
    Case(f"file: {name}", PREPARE, write("data/eu.json", text), said)
    for name, (text, said) in TEXTS.items()
]
CASES += [Case(name, PREPARE, change, said) for name, (change, said) in FILES.items()]
CASES += [
    Case(f"evaluate: {name}", EVALUATE, write("questions.json", text), "questions.json")
    for name, (text, _) in TEXTS.items()
]
CASES += [
    Case(
        f"evaluate: {name}",
        EVALUATE,
        write("questions.json", json.dumps([changed(id="1", language="eu"), record])),
        "questions.json",
    )
    for name, (record, _) in RECORDS.items()
    if name
    in (
        "no turns",
        "an unknown role",
        "two questions",
        "text with NUL",
        "half a surrogate pair",
        "a language of half a surrogate",
        "an image that is not there",
        "an image outside",
        "an image in base64",
        "more marks than images",
        "images instead of image",
        "a video",
        "longer than any row",
    )
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_refused(case: Case, refuse: Callable[[Case], None]):
    refuse(case)
