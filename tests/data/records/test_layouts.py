"""Every layout against records written out by hand; literal `<image>` stays text."""

import pickle

import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import ImageFolder
from mllm_jax.data.records.layouts import LAYOUTS, Columns
from mllm_jax.data.records.parse import IMAGE, Record, Turn, read_record, user_turn

LANGUAGES = ("eu", "en")
PNG = b"encoded image"


@pytest.fixture
def read(tmp_path):
    """Row -> record, as the index reads it; the stream's language is eu."""

    def act(layout: str, row: dict, renamed: dict[str, str] | None = None) -> Record:
        raw = Columns(layout, renamed or {})(row, 12)
        return read_record(raw, str(raw["id"]), ImageFolder(tmp_path), "eu", LANGUAGES)

    return act


def reply(text: str) -> Turn:
    return Turn("assistant", (text,))


def asked(text: str, images: int = 0) -> Turn:
    return Turn("user", tuple(part for part in user_turn(text, images).parts if part != ""))


# layout, row, the record it becomes; paths are checked by test_records
ROWS = [
    (
        "llava",
        {
            "id": "7",
            "image": PNG,
            "conversations": [
                {"from": "human", "value": "<image>\nZer da?"},
                {"from": "gpt", "value": "Katu <image> bat."},
            ],
            "language": "en",
            "url": "left aside",
        },
        Record(
            "7",
            (Turn("user", (IMAGE, "\nZer da?")), reply("Katu <image> bat.")),
            (PNG,),
            "en",
        ),
    ),
    (  # two columns in one table: one is null
        "llava",
        {
            "id": 8,
            "conversations": None,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "text": None}, {"type": "text", "text": "Zer?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "Hori."}]},
            ],
            "image": [PNG],
        },
        Record("8", (asked("Zer?", 1), reply("Hori.")), (PNG,), "eu"),
    ),
    (
        "caption",
        {"id": "c", "image": [PNG, PNG], "caption": "Bi <image>.", "language": "eu"},
        Record("c", (asked("", 2), reply("Bi <image>.")), (PNG, PNG), "eu"),
    ),
    (
        "text",
        {"text": "Kaixo <image>\nmundua.", "language": "eu"},
        Record("12", (), (), "eu", "Kaixo <image>\nmundua."),
    ),
    (
        "conceptual_captions",
        {"__key__": "000010005", "jpg": PNG, "txt": "a dog", "json": b"{}", "__url__": "0.tar"},
        Record("000010005", (asked("", 1), reply("a dog")), (PNG,), "eu"),
    ),
    (
        "pixmo_ama",
        {
            "image": {"bytes": PNG, "path": "0.png"},
            "image_url": "https://...",
            "image_sha256": "...",
            "question": "What does <image> mean?",
            "answer": "It stands for a picture.",
        },
        Record(
            "12",
            (asked("What does <image> mean?", 1), reply("It stands for a picture.")),
            (PNG,),
            "eu",
        ),
    ),
    (  # a classifier's tag in `language`
        "magpie",
        {
            "uuid": "d5f8",
            "language": "EN",
            "conversations": [
                {"from": "human", "value": "Explain <image> in HTML."},
                {"from": "gpt", "value": "It is no element."},
            ],
        },
        Record("d5f8", (asked("Explain <image> in HTML."), reply("It is no element.")), (), "eu"),
    ),
    (
        "cauldron",
        {
            "images": [{"bytes": PNG, "path": None}, PNG],
            "texts": [
                {"user": "Which <image>?", "assistant": "The left.", "source": "AI2D"},
                {"user": "Sure?", "assistant": "Yes.", "source": "AI2D"},
            ],
        },
        Record(
            "12",
            (asked("Which <image>?", 2), reply("The left."), asked("Sure?"), reply("Yes.")),
            (PNG, PNG),
            "eu",
        ),
    ),
    (
        "cauldron",
        {"images": [], "texts": [{"user": "Zer?", "assistant": "Hori."}]},
        Record("12", (asked("Zer?"), reply("Hori.")), (), "eu"),
    ),
    (
        "wit",
        {
            "language": "en",
            "image": PNG,
            "image_url": "http://...",
            "caption_reference_description": "A cat.",
            "caption_attribution_description": "English: a cat",
        },
        Record("12", (asked("", 1), reply("A cat.")), (PNG,), "en"),
    ),
]


@pytest.mark.parametrize(("layout", "row", "record"), ROWS, ids=[name for name, *_ in ROWS])
def test_layouts(layout, row, record, read):
    assert read(layout, row) == record


def test_every_layout_is_tested():
    assert {name for name, *_ in ROWS} == set(LAYOUTS)


def test_images_come_first(read):
    record = read("pixmo_ama", {"image": ["a.png", PNG], "question": "\nZer?", "answer": "Hori."})
    assert record.turns[0].parts == (IMAGE, "\n", IMAGE, "\n", "\nZer?")


@pytest.mark.parametrize(
    "image", ["a.png", PNG, {"bytes": None, "path": "a.png"}, ["a.png", {"bytes": PNG}]]
)
def test_images_are_passed_on_as_they_are(image):
    raw = Columns("caption", {})({"image": image, "caption": "Bai."}, 0)
    assert raw["image"] is image


def test_renamed_columns(read):
    row = {"caption": "A cat.", "caption_eu": "Katu bat.", "file": PNG, "lang": "en", "key": 3}
    renamed = {"caption": "caption_eu", "image": "file", "language": "lang", "id": "key"}
    assert read("caption", row, renamed) == Record(
        "3", (asked("", 1), reply("Katu bat.")), (PNG,), "en"
    )
    row = {"uuid": "a", "conversations": [{"from": "human", "value": "a"}], "lang": "en"}
    assert Columns("magpie", {"language": "lang"})(row, 0)["language"] == "en"


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        (
            "caption",
            "capton",
            "data.streams.*.columns.capton='x': layout 'caption' has no such name; did you mean "
            "'caption'? it has id, image, caption, language",
        ),
        (
            "magpie",
            "answer",
            "data.streams.*.columns.answer='x': layout 'magpie' has no such name; it has id, "
            "conversations, language",
        ),
    ],
)
def test_names_that_a_layout_does_not_have(layout, name, message):
    with pytest.raises(ConfigError) as error:
        Columns(layout, {name: "x"})
    assert str(error.value) == message


BAD = [
    (
        "field",
        "caption",
        {"image": PNG, "text": "a"},
        {},
        "no column 'caption' for caption; the row has image, text",
    ),
    ("field", "text", {}, {}, "no column 'text' for text; the row has none"),
    (  # a struct of lists that do not belong together
        "field",
        "llava",
        {"conversations": {"from": ["human", "gpt"], "value": ["Zer?"]}},
        {},
        "conversations is not a list of turns",
    ),
    (
        "field",
        "llava",
        {"id": 1, "text": "Kaixo."},
        {},
        "give either conversations or messages; the row has text; layout: text reads such rows",
    ),
    # a column that is named in the config is there, whatever the layout may lack
    (
        "field",
        "caption",
        {"image": PNG, "caption": "a"},
        {"language": "lang"},
        "no column 'lang' for language; the row has image, caption",
    ),
    ("field", "cauldron", {"images": [], "texts": None}, {},
     "texts None is not a list of {user, assistant}"),
    ("field", "cauldron", {"images": [], "texts": ["a"]}, {},
     "texts ['a'] is not a list of {user, assistant}"),
    ("field", "magpie", {"conversations": "a"}, {},
     "conversations 'a' is not a list of {from, value}"),
    ("field", "llava", {"id": 1, "messages": None}, {}, "give either conversations or messages"),
    ("field", "pixmo_ama", {"image": PNG, "question": None, "answer": "b"}, {},
     "turn 1: question None is not text"),
    ("field", "caption", {"image": PNG, "caption": 7}, {}, "turn 2: answer 7 is not text"),
    ("role", "magpie", {"conversations": [{"from": "tool", "value": "a"}]}, {},
     "turn 1: role 'tool'; allowed are user, assistant, system"),
    ("role", "magpie", {"conversations": [{"from": ["a"], "value": "a"}]}, {},
     "turn 1: role ['a']; allowed are user, assistant, system"),
    ("role_order", "magpie", {"conversations": [{"from": "human", "value": "a"}]}, {},
     "the last turn is not an answer"),
    ("text", "caption", {"image": PNG, "caption": b"\xff"}, {},
     "column 'caption': not UTF-8 text (invalid start byte)"),
    ("text", "text", {"id": "\ud800", "text": "a"}, {},
     "id: holds half of a surrogate pair, which is not valid text"),
    # nulls are answers without text, so that they can be allowed as such
    ("empty_answer", "wit", {"image": PNG, "caption_reference_description": None}, {},
     "turn 2: the answer is empty"),
    ("empty_answer", "text", {"text": None}, {}, "the text is empty"),
    ("empty_answer", "cauldron", {"images": [], "texts": [{"user": "a", "assistant": None}]}, {},
     "turn 2: the answer is empty"),
    ("image_missing", "caption", {"image": None, "caption": "a"}, {},
     "no image is stored with the text"),
    ("image_missing", "pixmo_ama", {"image": [], "question": "a", "answer": "b"}, {},
     "no image is stored with the text"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "layout", "row", "renamed", "reason"), BAD, ids=[case[-1] for case in BAD]
)
def test_bad_rows(code, layout, row, renamed, reason, read):
    with pytest.raises(RecordError) as fault:
        read(layout, row, renamed)
    assert (fault.value.code, fault.value.reason) == (code, reason)


def test_what_stores_keep_in_other_ways(read):
    """UTF-8 bytes and numpy values (TFDS), a struct of lists for a list of structs (`datasets`)."""
    conversations = {
        "from": np.array([b"human", b"gpt"], object),
        "value": np.array([b"<image>\nZer da?", "Katu ñabar bat.".encode()], object),
    }
    row = {
        "id": np.int64(5),
        "image": np.array([PNG], object),
        "conversations": conversations,
        "language": b"en",
    }
    turns = (Turn("user", (IMAGE, "\nZer da?")), reply("Katu ñabar bat."))
    assert read("llava", row) == Record("5", turns, (PNG,), "en")
    texts = {"user": ["Zer?"], "assistant": ["Hori."], "source": [None]}
    assert read("cauldron", {"images": None, "texts": texts}).turns == (
        asked("Zer?"),
        reply("Hori."),
    )


def test_sent_to_another_process():
    row = {"image": PNG, "caption_eu": "Katu bat."}
    columns = Columns("caption", {"caption": "caption_eu"})
    assert pickle.loads(pickle.dumps(columns))(row, 3) == columns(row, 3)


@pytest.mark.parametrize(
    ("own", "key"), [("a", "a"), (7, "7"), (2.5, "2.5"), (float("nan"), "12"), (None, "12")]
)
def test_messages_name_a_row_by_an_id_that_can_be_one(own, key: str):
    assert Columns("llava", {}).key({"id": own}, 12) == key
