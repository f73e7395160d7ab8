"""Records that share an id: doubles by id and content, all others numbered."""

import numpy as np
import pytest
from PIL import Image

from mllm_jax.config.data import StreamConfig
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.storage import RECORD, Store, digest, mark_duplicates
from mllm_jax.data.index.stream import report


def make(folder, ids, contents):
    """An index folder with ids and contents only."""
    records = np.zeros(len(ids), RECORD)
    records["row"] = np.arange(len(ids))
    records["id"] = np.cumsum([len(one.encode()) for one in ids])
    np.save(folder / "records.npy", records)
    for name in ("tokens", "weights", "hashes", "image_sizes", "pictures"):
        (folder / f"{name}.bin").write_bytes(b"")
    (folder / "ids.bin").write_bytes("".join(ids).encode())
    (folder / "faults.jsonl").write_text("")
    pairs = [digest(a.encode()) + digest(b.encode()) for a, b in zip(ids, contents, strict=True)]
    (folder / "digests.bin").write_bytes(b"".join(pairs))


@pytest.mark.parametrize(
    ("ids", "contents", "again", "names"),
    [
        ("abc", "xyz", [], ["a", "b", "c"]),
        ("aba", "xyz", [], ["a", "b", "a#2"]),
        ("aaaa", "xyxz", [2], ["a", "a#2", "a", "a#3"]),
        ("aabbab", "xxyyzy", [1, 3, 5], ["a", "a", "b", "b", "a#2", "b"]),
        (["a", "a#2", "a", "a#2"], "xyzw", [], ["a", "a#2", "a#6", "a#2#2"]),
        ("", "", [], []),
    ],
)
def test_doubles_have_equal_id_and_content_others_are_numbered(
    ids, contents, again, names, tmp_path
):
    make(tmp_path, list(ids), list(contents))
    numbered = mark_duplicates(tmp_path, str)
    store = Store(tmp_path)
    assert store.duplicates.tolist() == again
    assert [store.id(n) for n in range(len(store))] == names
    assert numbered == [name for name, own in zip(names, ids, strict=True) if name != own]
    assert [line.row for line in store.faults()] == again
    assert not (tmp_path / "digests.bin").exists()


def test_one_picture_with_many_conversations_is_used_in_full(
    tmp_path, write, picture, model, tokenizer, make_data, capsys
):
    picture("a.png", 7)
    picture("b.png", 9)

    def talk(question, answer="Bat.", image="a.png", **more):
        turns = [{"from": "human", "value": f"<image>\n{question}"}]
        turns += [{"from": "gpt", "value": answer}]
        return {"id": "33471", "image": image, "conversations": turns, "language": "eu"} | more

    records = [
        talk("Zer?"),
        talk("Nor?"),  # the question differs
        talk("Zer?", "Bi."),  # the answer
        talk("Zer?", image="b.png"),  # the picture
        talk("Zer?", language="en"),  # the language
        talk("Zer?", source="elsewhere"),  # nothing that is read
    ]
    path = write("s.jsonl", records)
    skip = {"duplicate_id": 0.2}
    data = make_data({"s": StreamConfig(str(path), format="llama3", skip=skip)})
    (stream,) = open_streams(Mixture(data, model, tokenizer))
    found = report(stream, data.languages)
    assert (found.used, found.numbered, found.faults) == (5, 4, {"duplicate_id": 1})
    keys = [stream.key(n) for n in range(len(stream))]
    assert keys == ["s/33471", *(f"s/33471#{n}" for n in (2, 3, 4, 5))]
    said = capsys.readouterr().out
    assert said.count("4 records have the id of an earlier one and other content") == 1
    open_streams(Mixture(data, model, tokenizer))
    assert capsys.readouterr().out == ""


def test_pictures_in_rows_count_as_content(tmp_path, write, model, tokenizer, make_data):
    import io

    import pyarrow as pa
    from pyarrow import parquet

    def encoded(grey):
        file = io.BytesIO()
        Image.new("RGB", (5, 4), (grey,) * 3).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    images = [encoded(1), encoded(2), encoded(1)]
    table = pa.table({"id": ["x"] * 3, "image": images, "caption": ["Katu bat."] * 3})
    parquet.write_table(table, tmp_path / "s.parquet")
    stream = StreamConfig(
        str(tmp_path / "s.parquet"),
        kind="parquet",
        layout="caption",
        language="eu",
        format="plain",
        skip={"duplicate_id": 0.4},
    )
    (index,) = open_streams(Mixture(make_data({"s": stream}), model, tokenizer))
    assert [index.key(n) for n in range(len(index))] == ["s/x", "s/x#2"]
