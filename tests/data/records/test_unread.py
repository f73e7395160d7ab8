"""Keys that nothing reads: known ones are refused, others are counted, ignored ones are let be."""

import json
from collections import Counter

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.storage import MOST_KEYS, count_keys
from mllm_jax.data.index.stream import report
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.layouts import Columns

ASKED = {"role": "user", "content": "Zer da?"}
SAID = {"role": "assistant", "content": "Katu bat."}
PNG = b"\x89PNG\r\n\x1a\n..."


def talk(asked: dict | None = None, said: dict | None = None, **fields) -> dict:
    turns = [ASKED | (asked or {}), SAID | (said or {})]
    return {"id": "1", "messages": turns, **fields}


def typed(**fields) -> dict:
    image = {"type": "image", **fields}
    return talk({"content": [image, {"type": "text", "text": "Zer?"}]}, image="b.png")


SHAREGPT = [{"from": "human", "value": "Zer?"}, {"from": "gpt", "value": "Bat."}]
LOST = [  # what another tool reads -> how the reason names it
    (talk(images=["a.png"]), "key 'images' is not read: pictures are read from `image`"),
    (talk(images=["a.png"], image="b.png"), "key 'images'"),
    (talk(image_url="https://example.org/a.png"), "key 'image_url'"),
    (talk(video="v.mp4"), "key 'video' is not read: films and sounds"),
    (talk(audios=["a.wav"]), "key 'audios'"),
    (talk(system="Labur."), "key 'system' is not read: write it as the first turn"),
    (talk(system_prompt="Labur."), "key 'system_prompt'"),
    (talk(tools='[{"name": "f"}]'), "key 'tools'"),
    (talk(history=[["a", "b"]]), "key 'history'"),
    (talk(photo={"bytes": PNG, "path": None}), "key 'photo' is not read: it holds a picture"),
    (talk(png=PNG), "key 'png' is not read: it holds a picture"),
    (talk(loss=False), "key 'loss'"),
    (talk({"images": ["a.png"]}), "turn 1: key 'images' is not read: a record's pictures"),
    (talk(None, {"loss": False}), "turn 2: key 'loss' is not read: every answer is trained"),
    (talk(None, {"weight": 0}), "turn 2: key 'weight'"),
    (talk({"train": True}), "turn 1: key 'train'"),
    (talk(None, {"reasoning_content": "Hmm."}), "turn 2: key 'reasoning_content'"),
    (talk(None, {"tool_calls": [{"id": "1"}]}), "turn 2: key 'tool_calls'"),
    (typed(path="a.png"), "turn 1: part of type image: key 'path'"),
    (typed(image="a.png"), "turn 1: part of type image: key 'image'"),
    (
        {"id": 1, "conversations": [SHAREGPT[0] | {"image": "a"}, SHAREGPT[1]]},
        "turn 1: key 'image'",
    ),
]


@pytest.mark.parametrize(("row", "reason"), LOST, ids=[reason for _, reason in LOST])
def test_what_would_be_lost_is_refused_by_its_key(row, reason):
    with pytest.raises(RecordError) as fault:
        Columns("llava", {})(row, 0)
    assert fault.value.code == "unread_key"
    assert fault.value.reason.startswith(reason)


@pytest.mark.parametrize("row", [row for row, _ in LOST], ids=[reason for _, reason in LOST])
def test_a_key_that_is_named_is_let_be(row):
    names = ["images", "image_url", "video", "audios", "system", "system_prompt", "tools"]
    names += ["history", "photo", "png", "loss", "weight", "train", "reasoning_content"]
    names += ["tool_calls", "path", "turn.image", "part.image"]
    assert "unread" not in Columns("llava", {}, names)(row, 0)


def test_all_other_keys_are_counted():
    row = talk({"name": "Ane", "index": 0}, {"weight": 1, "loss": True, "train": None}, source="w")
    row |= {"meta": {"a": 1}, "images": [], "tools": "[]", "system": "", "__key__": "7"}
    row["messages"][0]["content"] = [
        {"type": "image", "text": None, "detail": "low"},
        {"type": "text", "text": "Zer?", "image": None},
    ]
    raw = Columns("llava", {})(row | {"image": "a.png"}, 0)
    assert raw["unread"] == ["source", "meta", "turn.name", "turn.index", "part.detail"]
    assert "unread" not in Columns("llava", {})(talk(), 0)


@pytest.mark.parametrize("layout", ["caption", "text"])
def test_captions_and_documents_have_no_turns_but_may_lose_pictures(layout):
    row = {"id": 1, "caption": "a", "text": "b", "image": "a.png", "weight": 0.5, "system": "x"}
    if layout == "caption":
        assert Columns(layout, {})(row, 0)["unread"] == ["text", "weight", "system"]
        row["images"] = ["b.png"]
    with pytest.raises(RecordError, match=r"key 'images?' is not read"):
        Columns(layout, {})(row, 0)


def test_where_a_picture_came_from_is_no_loss():
    row = {"image": PNG, "image_url": "https://example.org", "question": "Zer?", "answer": "Katu."}
    assert Columns("pixmo_ama", {})(row, 0)["unread"] == ["image_url"]
    row = {"image": PNG, "caption": "Katu bat.", "image_path": "a/b.png", "images": ["b.png"]}
    with pytest.raises(RecordError, match="key 'images' is not read"):
        Columns("caption", {})(row, 0)
    assert Columns("caption", {}, ["images"])(row, 0)["unread"] == ["image_path"]


def test_a_column_that_is_read_cannot_be_ignored():
    with pytest.raises(ConfigError, match=r"ignore: layout 'caption' reads 'eu' as its caption"):
        Columns("caption", {"caption": "eu"}, ("eu",))
    Columns("caption", {"caption": "eu"}, ("caption",))


def test_keys_that_are_data_are_not_counted_one_by_one():
    total: Counter[str] = Counter()
    for n in range(MOST_KEYS + 50):
        count_keys(total, {f"k{n}": 1, "source": 2})
    assert len(total) == MOST_KEYS + 1
    assert total["..."] == 51 and total["source"] == 2 * (MOST_KEYS + 50)


def test_the_index_counts_them_and_the_refusal_names_a_way_on(
    write, model, tokenizer, make_data, tmp_path
):
    records = [talk(id=n, source="w") | {"id": str(n)} for n in range(9)]
    records += [talk(system="Labur.") | {"id": "s"}, talk(None, {"loss": False}) | {"id": "l"}]
    path = write("s.jsonl", records)

    def indexed(**changes):
        data = make_data({"s": StreamConfig(str(path), language="eu", format="llama3", **changes)})
        (stream,) = open_streams(Mixture(data, model, tokenizer))
        return report(stream, data.languages)

    with pytest.raises(ConfigError) as error:
        indexed()
    message = str(error.value)
    assert "record 's' (" in message and "data.streams.s.skip: {unread_key: 0.18}" in message
    assert message.endswith(
        "to train without these keys: data.streams.s.ignore: [system, turn.loss]"
    )
    found = indexed(ignore=("system", "loss"))
    assert (found.records, found.used, found.unread) == (11, 11, {"source": 9})
    found = indexed(skip={"unread_key": 0.2})
    assert (found.used, found.unread, found.faults) == (9, {"source": 9}, {"unread_key": 2})
    assert json.loads(json.dumps(found._asdict()))["unread"] == {"source": 9}
