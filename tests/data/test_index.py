"""Records that do not fit: dropped, cut or refused, and counted by language."""

import numpy as np
import pytest

from mllm_jax.config import StreamConfig
from mllm_jax.data.chat import Chat
from mllm_jax.data.index import StreamIndex, report
from mllm_jax.data.records import Record, Turn, user_turn
from mllm_jax.data.templates import TEMPLATES
from mllm_jax.errors import ConfigError
from mllm_jax.model_config import ModelConfig

LONG = "Txakur beltz bat belardian korrika, eta ume bi atzetik. " * 4


def record(key: str, question: str, reply: str, images: int = 0, language: str = "eu") -> Record:
    turns = (user_turn(question, images), Turn("assistant", (reply,)))
    return Record(key, turns, tuple(f"{n}.png" for n in range(images)), language)


RECORDS = [
    record("whole", "Zer?", "Katu.", 1),
    record("long answer", "Zer?", LONG, 1, "en"),
    record("long question", LONG, "Katu.", 0),
    record("four images", "Zer?", "Katu.", 4),
]


@pytest.fixture
def build(tokenizer, model, make_data):
    def make(records, **changes) -> StreamIndex:
        data = make_data({"s": StreamConfig("s.json")}, **({"length": 48} | changes))
        image = model.image_token if model.patches else None
        chat = Chat(tokenizer, TEMPLATES["llama3"], image, patches=1)
        return StreamIndex(0, "s", records, chat, data, model)

    return make


def test_drop(build):
    index = build(RECORDS, over_long="drop")
    assert [index[i].record for i in range(len(index))] == ["s/whole"]
    found = report(index)
    assert (found.records, found.used, found.images) == (4, 1, 1)
    assert (found.dropped, found.cut) == ({"eu": 2, "en": 1}, {})


def test_cut(build, tokenizer, image_token):
    index = build(RECORDS, over_long="cut")
    assert [index[i].record for i in range(len(index))] == ["s/whole", "s/long answer"]
    found = report(index)
    assert (found.dropped, found.cut) == ({"eu": 2}, {"en": 1})
    cut = index[1]
    assert len(cut.tokens) == index.sizes[1] == 48
    whole = Chat(tokenizer, TEMPLATES["llama3"], image_token, 4).encode(RECORDS[1].turns)
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:48])
    np.testing.assert_array_equal(cut.weights, whole.weights[:48])
    np.testing.assert_array_equal(cut.seats, whole.seats[:48])
    assert cut.images == ("0.png",)
    assert cut.language == 1


def test_fail_names_records_limits_and_what_to_do(build):
    with pytest.raises(ConfigError) as error:
        build(RECORDS, over_long="fail")
    message = str(error.value)
    assert message.startswith("data.streams.s: 3 of 4 records do not fit a row: ")
    assert "record 'long question' has" in message
    assert "tokens, but data.length=48" in message
    assert "record 'four images' has 4 images, but data.image_slots=3" in message
    assert "set data.over_long to drop or cut" in message
    assert "\n" not in message


def test_nothing_fits(build):
    with pytest.raises(ConfigError, match=r"data.streams.s: no record fits into data.length=8 "):
        build(RECORDS, length=8)


def test_counts_are_those_of_the_examples(build):
    records = [record(str(n), "Zer? " * n, "Katu bat. " * n, n % 4) for n in range(1, 9)]
    index = build(records, length=60, over_long="cut")
    examples = [index[i] for i in range(len(index))]
    found = report(index)
    assert sum(found.cut.values()) > 0
    assert index.sizes.tolist() == [len(e.tokens) for e in examples]
    assert index.images.tolist() == [len(e.images) for e in examples]
    assert found.tokens == sum(len(e.tokens) for e in examples)
    assert found.trained_tokens == sum(int(e.weights.sum()) for e in examples)
    assert found.trained_share == found.trained_tokens / found.tokens


def test_a_record_that_cannot_be_rendered_is_named(tokenizer, model, make_data):
    data = make_data({"s": StreamConfig("s.json")})
    chat = Chat(tokenizer, TEMPLATES["plain"], model.image_token, patches=1)
    bad = Record("k", (Turn("system", ("a",)), user_turn("b"), Turn("assistant", ("c",))), (), "eu")
    with pytest.raises(ConfigError, match=r"data.streams.s: record 'k': the chat template refuses"):
        StreamIndex(0, "s", [RECORDS[0], bad], chat, data, model)


def test_a_model_without_eyes_refuses_images(tokenizer, model, make_data):
    data = make_data({"s": StreamConfig("s.json")}, image_slots=0)
    text_only = ModelConfig(language=model.language, image_token=model.image_token)
    chat = Chat(tokenizer, TEMPLATES["llama3"], None, patches=1)
    with pytest.raises(ConfigError, match=r"record 'whole': .*the model reads no images"):
        StreamIndex(0, "s", RECORDS, chat, data, text_only)
    index = StreamIndex(0, "s", [record("t", "Zer?", "<image>")], chat, data, text_only)
    assert (index[0].seats == -1).all()
