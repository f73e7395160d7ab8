"""What is read, and what is refused with which words."""

import json

import pytest

from mllm_jax.config import StreamConfig
from mllm_jax.data.records import (
    IMAGE,
    Record,
    Turn,
    languages_in,
    load_records,
    scan_records,
    user_turn,
)
from mllm_jax.errors import ConfigError

LANGUAGES = ("eu", "en")


def chat(*values: str, **fields) -> dict:
    """A record in LLaVA's first shape; human and gpt in alternation."""
    who = ("human", "gpt") * len(values)
    turns = [{"from": f, "value": v} for f, v in zip(who, values, strict=False)]
    return {"language": "eu", "conversations": turns, **fields}


def messages(*turns: tuple, **fields) -> dict:
    items = [{"role": role, "content": content} for role, content in turns]
    return {"language": "eu", "messages": items, **fields}


def test_both_shapes(write, picture, tmp_path):
    a, b = str(tmp_path / picture("a.png")), str(tmp_path / picture("sub/b.png"))
    text, image = {"type": "text", "text": "Zer <image>?"}, {"type": "image"}
    objects = [
        chat("<image>\nZer da?", "Katu <image> bat.", id="7", image="a.png", url="ignored"),
        chat("Zer <image> eta <image>", "Bi.", "Eta?", "Hiru.", image=["a.png", "sub/b.png"]),
        messages(
            ("system", "Labur."),
            ("user", [image, image, text]),
            ("assistant", [text]),
            id=3,
            image=["sub/b.png", "a.png"],
        ),
        messages(("user", [text]), ("assistant", "Bai."), language="en", image=None),
        chat("Kaixo", "Bai.", image=[]),
    ]
    expected = [
        Record("7", (Turn("user", (IMAGE, "\nZer da?")), Turn("assistant", ("Katu <image> bat.",))),
               (a,), "eu"),
        Record("1", (Turn("user", ("Zer ", IMAGE, " eta ", IMAGE)), Turn("assistant", ("Bi.",)),
                     Turn("user", ("Eta?",)), Turn("assistant", ("Hiru.",))), (a, b), "eu"),
        Record("3", (Turn("system", ("Labur.",)),
                     Turn("user", (IMAGE, "\n", IMAGE, "\n", "Zer <image>?")),
                     Turn("assistant", ("Zer <image>?",))), (b, a), "eu"),
        Record("3", (Turn("user", ("Zer <image>?",)), Turn("assistant", ("Bai.",))), (), "en"),
        Record("4", (Turn("user", ("Kaixo",)), Turn("assistant", ("Bai.",))), (), "eu"),
    ]  # fmt: skip
    for name in ("a.json", "a.jsonl"):
        stream = StreamConfig(str(write(name, objects)))
        assert list(load_records("s", stream, LANGUAGES)) == expected
    assert expected[2].turns[1] == user_turn("Zer <image>?", images=2)


def test_images_and_language_of_the_stream(write, picture, tmp_path):
    picture("pictures/a.png")
    objects = [chat("<image>", "Bai.", image="a.png", language=None), chat("a", "b", language="en")]
    stream = StreamConfig(str(write("a.json", objects)), str(tmp_path / "pictures"), "eu")
    records = load_records("s", stream, LANGUAGES)
    assert [record.language for record in records] == ["eu", "en"]
    assert records[0].images == (str(tmp_path / "pictures" / "a.png"),)


BAD = [
    (chat("<image>\nZer?", "Bai."), "1 <image> in user turns, but 0 images; .*typed parts"),
    (chat("Zer?", "Bai.", image="a.png"), "0 <image> in user turns, but 1 images"),
    (chat("<image><image>", "Bai.", image="a.png"), "2 <image> in user turns, but 1 images"),
    (chat("Zer?", "<image>", image="a.png"), "0 <image> in user turns, but 1 images"),
    (chat("<image>", "b", image="b.png"), r"b\.png: no such image file"),
    (chat("<image>", "b", image="text.png"), r"text\.png: not an image that PIL reads"),
    (chat("<image>", "b", image="../a.png"), r"image '\.\./a\.png' leaves the image folder"),
    (chat("<image>", "b", image="/etc/a.png"), r"image '/etc/a\.png' leaves the image folder"),
    (chat("<image>", "b", image=""), "image '' is no path"),
    (chat("<image>", "b", image=7), "image 7 is neither a path nor a list"),
    (chat("<image>", "b", image=["a.png", None]), "neither a path nor a list of paths"),
    (chat("Zer?", "Bai.", language="eus"), "language 'eus' is not in data.languages; did you mean"),
    (chat("Zer?", "Bai.", language="x"), "language 'x' is not .*; allowed are eu, en"),
    (chat("Zer?", "Bai.", language=None), "no language: give the record one, or the stream"),
    (chat("Zer?", "Bai.", language=["eu"]), r"language \['eu'\] is not text"),
    (chat("Zer?", " \n"), "turn 2: the answer is empty"),
    (chat("Zer?"), "the last turn is not an answer"),
    (chat("Zer?", "Bai.", "Eta?"), "the last turn is not an answer"),
    (messages(("user", "a"), ("user", "b")), "turn 2: found user, expected assistant"),
    (messages(("assistant", "a")), "turn 1: found assistant, expected user"),
    (messages(("user", "a"), ("system", "b")), "turn 2: found system, expected assistant"),
    (messages(("system", "a")), "only a system turn"),
    (messages(("tool", "a")), "turn 1: role 'tool'; allowed are user, assistant, system"),
    (messages(("user", 7)), "turn 1: content 7 is not text"),
    (messages(("user", [{"type": "video"}])), "part .*video.* is neither an image nor text"),
    (messages(("user", ["a"])), "part 'a' is neither an image nor text"),
    (messages(("user", "a"), ("assistant", [{"type": "image"}])), "images stand in user turns"),
    (messages(("user", "a"), ("assistant", [])), "turn 2: the answer is empty"),
    ({"conversations": [{"from": "bot", "value": "a"}]}, "allowed are human, gpt, system"),
    ({"conversations": ["a"]}, "turn 1: expected an object, found str"),
    ({"conversations": []}, "conversations is not a list of turns"),
    ({"text": "a"}, "give either conversations or messages"),
    (chat("a", "b", messages=[]), "not both"),
    (chat("a", "b", id=[1]), r"id \[1\] is neither text nor a number"),
    (chat("a\ud800", "b"), "half of a surrogate pair"),
    (["a"], "expected an object, found list"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason[:40] for _, reason in BAD])
def test_refused_records(bad, reason, write, picture, tmp_path):
    picture("a.png")
    (tmp_path / "text.png").write_text("no image")
    lines = "\n".join(json.dumps(item) for item in [chat("a", "b"), bad])
    stream = StreamConfig(str(write("a.jsonl", lines)))
    records, refused = scan_records("s", stream, LANGUAGES)
    assert [record.id for record in records] == ["0"]
    assert len(refused) == 1
    with pytest.raises(
        ConfigError, match=rf"a\.jsonl: 1 of 2 records refused: .*{reason}"
    ) as error:
        load_records("s", stream, LANGUAGES)
    assert "\n" not in str(error.value)


def test_the_first_few_are_named_and_all_are_counted(write):
    objects = [chat("a", "", id=f"r{n}") for n in range(9)] + [chat("a", "b")]
    with pytest.raises(ConfigError, match=r"9 of 10 .*record 'r0'.*record 'r4'.*; and 4 more"):
        load_records("s", StreamConfig(str(write("a.json", objects))), LANGUAGES)


BROKEN = [
    ("a.json", '[\n {"id": 1},\n {"id" 2}\n]', r"a\.json:3: not JSON: Expecting ':' delimiter"),
    ("a.jsonl", '{"id": 1}\n\n{"id"', r"a\.jsonl:3: not JSON"),
    ("a.json", '{"id": 1}\n{"id": 2}', r"a\.json:2: not JSON: .*name the file .jsonl"),
    ("a.json", '{"id": 1}', r"a\.json: expected a list of records, found dict"),
    ("a.json", "[]", r"a\.json: no records \(data.streams.s.path\)"),
    ("a.csv", "a,b", r"a\.csv: expected a file named .json .* or .jsonl"),
]


@pytest.mark.parametrize(("name", "text", "message"), BROKEN)
def test_broken_files(name, text, message, write):
    with pytest.raises(ConfigError, match=message):
        load_records("s", StreamConfig(str(write(name, text))), LANGUAGES)


def test_missing_and_unreadable_files(tmp_path, write):
    with pytest.raises(ConfigError, match=r"data.streams.s.path: .*nowhere\.json: no such file"):
        load_records("s", StreamConfig(str(tmp_path / "nowhere.json")), LANGUAGES)
    path = write("a.json", [chat("a", "b")])
    with pytest.raises(ConfigError, match=r"data.streams.s.images: .*nowhere: no such folder"):
        load_records("s", StreamConfig(str(path), str(tmp_path / "nowhere")), LANGUAGES)
    path.write_bytes(b'[\n"\xff"]')
    with pytest.raises(ConfigError, match=r"a\.json:2: not UTF-8"):
        load_records("s", StreamConfig(str(path)), LANGUAGES)


def test_languages_of_a_file(write, tmp_path):
    objects = [chat("a", "b"), chat("a", "b", language="en"), chat("a", "b", language=None), 7]
    assert languages_in(write("a.json", [*objects, chat("a", "b")])) == ("eu", "en")
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        languages_in(tmp_path / "nowhere.json")


@pytest.mark.realdata
def test_published_sample(shared):
    path = shared / "realdata/llava_format/sample_data.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    languages = tuple(dict.fromkeys(["en", *(r["language"] for r in raw if "language" in r)]))
    records, refused = scan_records("sample", StreamConfig(str(path), language="en"), languages)
    assert refused == []
    assert [record.id for record in records] == [str(r["id"]) for r in raw]
    assert sum(len(record.images) for record in records) == 163
    assert sum(record.language == "ja" for record in records) == 20
