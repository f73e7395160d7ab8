"""What is read, and what is refused with which words."""

import json
import pickle
import time
from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import ImageFolder
from mllm_jax.data.records.layouts import Columns
from mllm_jax.data.records.parse import (
    IMAGE,
    MOST_TALKED,
    MOST_WRITTEN,
    Record,
    Turn,
    read_record,
    user_turn,
)
from mllm_jax.evaluation.questions import languages_in, load_records

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
    (
        "image_count",
        chat("<image>\nZer?", "Bai."),
        "1 <image> in user turns, but 0 images; .*typed parts",
    ),
    ("image_count", chat("Zer?", "Bai.", image="a.png"), "0 <image> in user turns, but 1 images"),
    (
        "image_count",
        chat("<image><image>", "Bai.", image="a.png"),
        "2 <image> in user turns, but 1 images",
    ),
    (
        "image_count",
        chat("Zer?", "<image>", image="a.png"),
        "0 <image> in user turns, but 1 images",
    ),
    ("image_missing", chat("<image>", "b", image="b.png"), r"b\.png: no such image file"),
    (
        "image_type",
        chat("<image>", "b", image="text.png"),
        r"text\.png: not an image that PIL reads",
    ),
    (
        "image_path",
        chat("<image>", "b", image="../a.png"),
        r"image '\.\./a\.png' leaves the image folder",
    ),
    (
        "image_path",
        chat("<image>", "b", image="/etc/a.png"),
        r"image '/etc/a\.png' leaves the image folder",
    ),
    ("field", chat("<image>", "b", image=""), "image '' is not a path"),
    ("field", chat("<image>", "b", image=7), "image 7 is neither a path nor a list"),
    ("field", chat("<image>", "b", image=["a.png", None]), "neither a path nor a list of paths"),
    (
        "language",
        chat("Zer?", "Bai.", language="eus"),
        "language 'eus' is not in data.languages; did you mean",
    ),
    ("language", chat("Zer?", "Bai.", language="x"), "language 'x' is not .*; allowed are eu, en"),
    (
        "language",
        chat("Zer?", "Bai.", language=None),
        "no language: give the record one, or the stream",
    ),
    ("language", chat("Zer?", "Bai.", language=["eu"]), r"language \['eu'\] is not text"),
    ("empty_answer", chat("Zer?", " \n"), "turn 2: the answer is empty"),
    ("role_order", chat("Zer?"), "the last turn is not an answer"),
    ("role_order", chat("Zer?", "Bai.", "Eta?"), "the last turn is not an answer"),
    (
        "role_order",
        messages(("user", "a"), ("user", "b")),
        "turn 2: found user, expected assistant",
    ),
    ("role_order", messages(("assistant", "a")), "turn 1: found assistant, expected user"),
    (
        "role_order",
        messages(("user", "a"), ("system", "b")),
        "turn 2: found system, expected assistant",
    ),
    ("role_order", messages(("system", "a")), "only a system turn"),
    ("role", messages(("tool", "a")), "turn 1: role 'tool'; allowed are user, assistant, system"),
    ("field", messages(("user", 7)), "turn 1: content 7 is not text"),
    (
        "field",
        messages(("user", [{"type": "video"}])),
        "part .*video.* is neither an image nor text",
    ),
    ("field", messages(("user", ["a"])), "part 'a' is neither an image nor text"),
    (
        "field",
        messages(("user", "a"), ("assistant", [{"type": "image"}])),
        "only user turns have images",
    ),
    ("empty_answer", messages(("user", "a"), ("assistant", [])), "turn 2: the answer is empty"),
    ("role", {"conversations": [{"from": "bot", "value": "a"}]}, "allowed are human, gpt, system"),
    ("field", {"conversations": ["a"]}, "turn 1: expected an object, found str"),
    ("field", {"conversations": []}, "conversations is not a list of turns"),
    ("field", {"text": "a"}, "give either conversations or messages"),
    ("field", chat("a", "b", messages=[]), "not both"),
    ("field", chat("a", "b", id=[1]), r"id \[1\] is neither text nor a number"),
    ("text", chat("a\ud800", "b"), "half of a surrogate pair"),
    ("field", ["a"], "expected an object, found list"),
]


@pytest.mark.parametrize(("code", "bad", "reason"), BAD, ids=[reason[:40] for *_, reason in BAD])
def test_refused_records(code, bad, reason, write, picture, tmp_path):
    picture("a.png")
    (tmp_path / "text.png").write_text("no image")
    lines = "\n".join(json.dumps(item) for item in [chat("a", "b"), bad])
    stream = StreamConfig(str(write("a.jsonl", lines)))
    with pytest.raises(
        ConfigError, match=rf"a\.jsonl: 1 of 2 records refused: .*{reason}"
    ) as error:
        load_records("s", stream, LANGUAGES)
    assert "\n" not in str(error.value)
    if code not in ("image_missing", "image_type"):  # files are looked at later
        with pytest.raises(RecordError, match=reason) as fault:
            read(Columns("llava", {})(bad, 1) if isinstance(bad, dict) else bad, tmp_path)
        assert fault.value.code == code


def read(raw: object, folder: Path = Path()) -> Record:
    return read_record(raw, "7", ImageFolder(folder), None, LANGUAGES)


EXACT = [
    ("field", chat("a", "b", image=7), "image 7 is neither a path nor a list of paths, nor bytes"),
    ("role", messages(("tool", "a")), "turn 1: role 'tool'; allowed are user, assistant, system"),
    ("role_order", messages(("user", "a"), ("user", "b")),
     "turn 2: found user, expected assistant"),
    ("empty_answer", chat("Zer?", " "), "turn 2: the answer is empty"),
    ("empty_answer", {"text": "\n", "language": "eu"}, "the text is empty"),
    ("text", chat("a", "b\0"), "turn 2: holds a NUL character"),
    ("text", chat("a", "\ud800"),
     "turn 2: holds half of a surrogate pair, which is not valid text"),
    ("text", {"text": "a\0b", "language": "eu"}, "text: holds a NUL character"),
    ("language", chat("a", "b", language="eus"),
     "language 'eus' is not in data.languages; did you mean 'eu'?"),
    ("image_count", chat("<image>", "b", image=["a.png", "b.png"]),
     "1 <image> in user turns, but 2 images"),
    ("image_path", chat("<image>", "b", image="../a.png"),
     "image '../a.png' leaves the image folder; if that is meant, name the folder that it leads "
     "to in data.streams.*.links"),
    ("image_missing", chat("<image>", "b", image={"bytes": None, "path": None}),
     "no such image: neither bytes nor a path are stored"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "raw", "reason"), EXACT, ids=[reason for *_, reason in EXACT])
def test_messages_word_for_word(code, raw, reason):
    with pytest.raises(RecordError) as fault:
        read(raw)
    assert (fault.value.code, fault.value.reason) == (code, reason)


def test_images_of_all_kinds(tmp_path):
    """Bytes win over the path; paths are resolved, bytes passed on."""
    data = b"encoded"
    stored = ["a.png", data, {"bytes": data, "path": "b.png"}, {"bytes": None, "path": "c/d.png"}]
    record = read(chat("<image>" * 4, "Bai.", image=stored), tmp_path)
    assert record.images == (str(tmp_path / "a.png"), data, data, str(tmp_path / "c" / "d.png"))
    assert read(chat("<image>", "Bai.", image=data)).images == (data,)
    assert read(chat("<image>", "Bai.", image={"path": "a.png"})).images == ("a.png",)
    # zero bytes are an image file that is empty: the images' own check says so
    assert read(chat("<image>", "Bai.", image={"bytes": b""})).images == (b"",)
    empty = {"bytes": b"", "path": "b.png"}
    assert read(chat("<image>", "Bai.", image=empty)).images == ("b.png",)
    for wrong in ({"bytes": 7}, {"url": "a.png"}, {"bytes": None, "path": b"a"} | {"x": 1}, [None]):
        with pytest.raises(RecordError, match="neither a path nor a list of paths") as fault:
            read(chat("<image>", "Bai.", image=wrong))
        assert fault.value.code == "field"


@pytest.mark.parametrize("path", ["../a.png", "b/../../a.png", "/etc/a.png"])
def test_stored_paths_that_leave_the_folder(path, tmp_path):
    with pytest.raises(RecordError, match="leaves the image folder") as fault:
        read(chat("<image>", "Bai.", image={"bytes": None, "path": path}), tmp_path)
    assert fault.value.code == "image_path"


def test_links_that_lead_out_of_the_image_folder(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "secret"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
        (folder / "a.png").touch()
    (tmp_path / "images2").mkdir()  # begins with the same name
    (inside / "file.png").symlink_to(outside / "a.png")
    (inside / "folder").symlink_to(outside)
    (inside / "broken.png").symlink_to("../nowhere.png")
    (inside / "beside.png").symlink_to(tmp_path / "images2" / "a.png")
    (inside / "good.png").symlink_to(inside / "sub" / "a.png")
    (tmp_path / "link").symlink_to(inside)
    for root in (inside, tmp_path / "link"):  # the folder itself may be a link
        for name in ("file.png", "folder/a.png", "broken.png", "beside.png"):
            with pytest.raises(RecordError) as fault:
                read(chat("<image>", "Bai.", image=name), root)
            assert fault.value.code == "image_path"
            said = f"image {name!r} leaves the image folder by a symbolic link; if that is meant, "
            assert fault.value.reason.startswith(said)
        for name in ("good.png", "sub/a.png", "not-there.png"):
            assert read(chat("<image>", "Bai.", image=name), root).images == (str(root / name),)


def test_links_may_lead_to_folders_that_the_config_names(tmp_path):
    inside, disk2 = tmp_path / "images", tmp_path / "disk2"
    for folder in (inside, disk2):
        folder.mkdir()
    (disk2 / "a.png").touch()
    (inside / "a.png").symlink_to(disk2 / "a.png")
    (inside / "more").symlink_to(disk2)
    folder = pickle.loads(pickle.dumps(ImageFolder(inside, (str(disk2),))))
    for name in ("a.png", "more/a.png", "../disk2/a.png"):
        assert folder.path(name) == f"{inside}/{name}"
    with pytest.raises(RecordError, match="leaves the image folder"):
        folder.path("../a.json")


def test_the_hub_cache_holds_images_as_links_to_its_blobs(tmp_path):
    revision = tmp_path / "datasets--org--name" / "snapshots" / "c0ffee"
    blobs = revision.parent.parent / "blobs"
    for folder in (revision / "images", blobs):
        folder.mkdir(parents=True)
    (blobs / "0a1b").touch()
    (revision / "images" / "a.png").symlink_to("../../../blobs/0a1b")
    (revision / "images" / "b.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "mine").symlink_to(revision)
    for root in (revision / "images", tmp_path / "mine" / "images"):
        assert ImageFolder(root).path("a.png") == str(root / "a.png")
        with pytest.raises(RecordError, match="leaves the image folder by a symbolic link"):
            ImageFolder(root).path("b.png")


def test_a_path_that_stays_in_the_folder_is_read_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "images", Path("images"), tmp_path / "link"):
        folder = ImageFolder(root)
        assert folder.path(f"{tmp_path}/images/sub/a.png") == str(root / "sub" / "a.png")
        assert folder.path("sub/../a.png") == f"{root}/sub/../a.png"
        for name in (f"{tmp_path}/images2/a.png", f"{tmp_path}/images/../a.png", "/", "."):
            with pytest.raises(RecordError, match="leaves the image folder"):
                folder.path(name)
    assert ImageFolder(Path("/")).path("/a.png") == "/a.png"


def test_a_link_that_leads_out_ends_a_load(write, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "a.json")
    stream = StreamConfig(
        str(write("a.json", [chat("<image>", "Bai.", image="a.png")])), str(tmp_path / "images")
    )
    with pytest.raises(ConfigError, match="leaves the image folder by a symbolic link"):
        load_records("s", stream, LANGUAGES)


def test_documents():
    raw = {"id": 3, "text": "Kaixo <image>,\nmundua!", "language": None}
    record = read_record(raw, "3", ImageFolder(Path()), "eu", LANGUAGES)
    assert record == Record("3", (), (), "eu", "Kaixo <image>,\nmundua!")
    with pytest.raises(RecordError, match="text 7 is not text") as fault:
        read({"text": 7, "language": "eu"})
    assert fault.value.code == "field"


def test_the_first_few_are_named_and_all_are_counted(write):
    objects = [chat("a", "", id=f"r{n}") for n in range(9)] + [chat("a", "b")]
    with pytest.raises(ConfigError, match=r"9 of 10 .*record 'r0'.*record 'r4'.*; and 4 more"):
        load_records("s", StreamConfig(str(write("a.json", objects))), LANGUAGES)


BROKEN = [
    ("a.json", '[\n {"id": 1},\n {"id" 2}\n]', r"a\.json:3: not JSON: Expecting ':' delimiter"),
    ("a.jsonl", '{"id": 1}\n\n{"id"', r"record '1' \(.*a\.jsonl:3\): not JSON"),
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
    objects = [chat("a", "b"), chat("a", "b", language="en"), chat("a", "b", language=None)]
    assert languages_in(write("a.json", [*objects, chat("a", "b")])) == ("eu", "en")
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        languages_in(tmp_path / "nowhere.json")


@pytest.mark.realdata
def test_published_sample(shared):
    path = shared / "realdata/llava_format/sample_data.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    languages = tuple(dict.fromkeys(["en", *(r["language"] for r in raw if "language" in r)]))
    records = load_records("sample", StreamConfig(str(path), language="en"), languages)
    assert [record.id for record in records] == [str(r["id"]) for r in raw]
    assert sum(len(record.images) for record in records) == 163
    assert sum(record.language == "ja" for record in records) == 20


def test_keys_that_nothing_reads_are_told(write, capsys):
    objects = [chat("a", "b", source="w", topic="x"), chat("a", "b", source="w")]
    load_records("s", StreamConfig(str(write("a.json", objects))), LANGUAGES)
    assert capsys.readouterr().out.endswith(
        "a.json: keys that nothing reads: source (2), topic (1)\n"
    )


def test_turns_are_counted_with_the_system_turn():
    asked, empty = ("user", "a"), ("assistant", " ")
    for turns, reason in (
        ([("system", "s"), asked, asked], "turn 3: found user, expected assistant"),
        ([("system", "s"), asked, empty], "turn 3: the answer is empty"),
        ([asked, empty], "turn 2: the answer is empty"),
    ):
        with pytest.raises(RecordError) as fault:
            read(messages(*turns))
        assert fault.value.reason == reason


HINTS = [
    (chat("<image>\nZer?", "Bai."), "image_count", "; write its path under `image`"),
    (
        messages(("user", [{"type": "image"}, {"type": "text", "text": "a"}]), ("assistant", "b")),
        "image_count",
        "; write their paths under the record's `image`, in their order",
    ),
    (chat("Zer?", "Bai.", image="a.png"), "image_count", "; write <image> at the place of each"),
    (
        {"language": "eu", "conversations": [{"role": "user", "content": "a"}]},
        "role",
        "turn 1: no 'from'; turns of 'role' and 'content' belong under messages",
    ),
    (
        {"language": "eu", "messages": [{"from": "human", "value": "a"}]},
        "role",
        "turn 1: no 'role'; turns of 'from' and 'value' belong under conversations",
    ),
    (chat("a", "b", language="e" * 10**6), "language", "is not a name of 1 to 100"),
    (chat("<image>", "b", image="https://example.org/a.png"), "image_missing", "is an address"),
]


@pytest.mark.parametrize(("raw", "code", "hint"), HINTS)
def test_a_reason_names_the_way_to_write_it(raw, code, hint):
    with pytest.raises(RecordError) as fault:
        read(raw)
    assert fault.value.code == code and hint in fault.value.reason
    assert len(fault.value.reason) <= 400


ENCODED = "iVBORw0KGgo" + "AA/B" * 500_000
PICTURES = [ENCODED, f"data:image/png;base64,{ENCODED}", "/9j/" + "4AAQ/" * 30, "a/" * 3000]


@pytest.mark.parametrize("image", PICTURES, ids=["png", "data", "short jpeg", "long"])
@pytest.mark.parametrize("wrap", [str, lambda image: [image], lambda image: {"bytes": image}])
def test_a_picture_as_text_is_refused_at_once(image, wrap):
    begin = time.process_time()
    with pytest.raises(
        RecordError, match=r"is encoded text of \d+ characters, not a path: decode"
    ) as fault:
        read(chat("<image>", "b", image=wrap(image)))
    assert fault.value.code == "field" and len(fault.value.reason) <= 400
    assert time.process_time() - begin < 1


def test_texts_of_megabytes_are_refused_before_work():
    half = "a" * (MOST_TALKED // 2)
    read(chat(half, half))
    with pytest.raises(RecordError, match="1048577 characters in one conversation") as fault:
        read(chat(half + "b", half))
    assert fault.value.code == "too_long"
    assert len(read({"text": "a" * MOST_WRITTEN, "language": "eu"}).text) == MOST_WRITTEN
    with pytest.raises(
        RecordError, match=r"characters in one document, more than .*; split it"
    ) as fault:
        read({"text": "a" * (MOST_WRITTEN + 1), "language": "eu"})
    assert fault.value.code == "too_long"


def test_a_name_of_a_language_has_at_most_a_hundred_characters():
    with pytest.raises(RecordError, match=r"is not in data\.languages"):
        read(chat("a", "b", language="x" * 100))
    with pytest.raises(RecordError, match="is not a name of 1 to 100 printable characters"):
        read(chat("a", "b", language="x" * 101))
