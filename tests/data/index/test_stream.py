"""Records that do not fit: dropped, cut or refused, and counted by language."""

from typing import Any

import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.stream import StreamIndex, report
from mllm_jax.data.records.parse import Turn, user_turn

LONG = "Txakur beltz bat belardian korrika, eta ume bi atzetik. " * 4
LANGUAGES = ("eu", "en")


def record(key: str, question: str, reply: str, images: int = 0, language: str = "eu") -> dict:
    turns = [
        {"from": "human", "value": "<image>\n" * images + question},
        {"from": "gpt", "value": reply},
    ]
    names = [f"{n}.png" for n in range(images)]
    return {"id": key, "image": names, "language": language, "conversations": turns}


RECORDS = [
    record("whole", "Zer?", "Katu.", 1),
    record("long answer", "Zer?", LONG, 1, "en"),
    record("long question", LONG, "Katu.", 0),
    record("four images", "Zer?", "Katu.", 4),
]


@pytest.fixture
def build(write, picture, tokenizer, model, make_data):
    for n in range(4):
        picture(f"{n}.png")

    def make(records, network=model, format: Any = "llama3", **changes) -> StreamIndex:
        path = str(write("s.json", records))
        data = make_data({"s": StreamConfig(path, format=format)}, **({"length": 48} | changes))
        return open_streams(Mixture(data, network, tokenizer))[0]

    return make


def test_drop(build):
    index = build(RECORDS, over_long="drop")
    assert [index[i].record for i in range(len(index))] == ["s/whole"]
    found = report(index, LANGUAGES)
    assert (found.records, found.used, found.images) == (4, 1, 1)
    assert (found.dropped, found.cut) == ({"eu": 2, "en": 1}, {})


def test_cut(build, tokenizer, image_token):
    index = build(RECORDS, over_long="cut")
    assert [index[i].record for i in range(len(index))] == ["s/whole", "s/long answer"]
    found = report(index, LANGUAGES)
    assert (found.dropped, found.cut) == ({"eu": 2}, {"en": 1})
    cut = index[1]
    assert len(cut.tokens) == index.sizes[1] == 48
    turns = (user_turn("Zer?", 1), Turn("assistant", (LONG,)))
    whole = Chat(tokenizer, TEMPLATES["llama3"], image_token, 4).encode(turns)
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:48])
    np.testing.assert_array_equal(cut.weights, whole.weights[:48])
    np.testing.assert_array_equal(cut.placeholders, whole.placeholders[:48])
    assert [path.rsplit("/", 1)[-1] for path in cut.images] == ["0.png"]
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
    found = report(index, LANGUAGES)
    assert sum(found.cut.values()) > 0
    assert index.sizes.tolist() == [len(e.tokens) for e in examples]
    assert index.images.tolist() == [len(e.images) for e in examples]
    assert found.tokens == sum(len(e.tokens) for e in examples)
    assert found.trained_tokens == sum(int(e.weights.sum()) for e in examples)
    assert found.trained_share == found.trained_tokens / found.tokens


def test_a_record_that_cannot_be_rendered_is_named(build):
    bad = record("k", "b", "c")
    bad["conversations"].insert(0, {"from": "system", "value": "a"})
    with pytest.raises(
        ConfigError, match=r"record 'k' \(.*s.json:\d+\): the chat template refuses"
    ):
        build([RECORDS[0], bad], format="plain")


def test_a_model_without_eyes_refuses_images(build, model):
    blind = ModelConfig(language=model.language, image_token=model.image_token)
    with pytest.raises(ConfigError, match=r"record 'whole' .*the model reads no images"):
        build(RECORDS, blind, image_slots=0)
    index = build([record("t", "Zer?", "<image>")], blind, image_slots=0)
    assert (index[0].placeholders == -1).all()
