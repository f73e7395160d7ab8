"""Weights by record, by token, by epochs, and evened out over languages."""

from typing import Any

import numpy as np
import pytest

from mllm_jax.data.mixture import passes, record_weights
from mllm_jax.data_config import DataConfig, StreamConfig
from mllm_jax.errors import ConfigError


class Stream:
    def __init__(self, records: int, tokens: int, *languages: str):
        self.sizes, self.images = np.full(records, tokens), np.zeros(records, np.int64)
        self.languages = languages

    def __len__(self) -> int:
        return len(self.sizes)


STREAMS = [Stream(100, 50, "eu"), Stream(300, 10, "en"), Stream(100, 20, "eu")]


def data(streams: list[dict], **fields) -> DataConfig:
    named = {f"s{n}": StreamConfig("a.json", **of) for n, of in enumerate(streams)}
    given: dict[str, Any] = {"languages": ("eu", "en")} | fields
    return DataConfig(named, **given)


WEIGHTS = [{"weight": 2.0}, {"weight": 1.0}, {"weight": 1.0}]


def test_by_records():
    assert record_weights(STREAMS, data(WEIGHTS)) == [0.5, 0.25, 0.25]


def test_by_tokens_the_tokens_have_the_shares():
    records = np.array(record_weights(STREAMS, data(WEIGHTS, weights="tokens")))
    tokens = records * [50, 10, 20]
    np.testing.assert_allclose(tokens / tokens.sum(), [0.5, 0.25, 0.25])


def test_by_epochs_the_positions_of_a_pass_are_the_epochs():
    config = data([{"epochs": 2.0}, {"epochs": 1.0}, {"epochs": 0.5}])
    assert passes(STREAMS, config) == 550
    positions = np.array(record_weights(STREAMS, config)) * 550
    np.testing.assert_allclose(positions, [200, 300, 50])


def test_temperature_evens_out_languages_and_keeps_shares_inside_one():
    config = data([{"weight": 6.0}, {"weight": 1.0}, {"weight": 3.0}], temperature=2.0)
    weights = record_weights(STREAMS, config)
    shares = np.sqrt([0.9, 0.1]) / np.sqrt([0.9, 0.1]).sum()
    np.testing.assert_allclose([weights[0] + weights[2], weights[1]], shares)
    assert weights[0] / weights[2] == pytest.approx(2)
    even = record_weights(STREAMS, data(WEIGHTS, temperature=1e9))
    np.testing.assert_allclose([even[0] + even[2], even[1]], [0.5, 0.5])


def test_a_temperature_needs_streams_of_one_language():
    mixed = [Stream(10, 5, "eu", "en"), *STREAMS[1:]]
    with pytest.raises(ConfigError, match="stream s0 holds the languages eu, en; give every"):
        record_weights(mixed, data(WEIGHTS, temperature=3.0))


@pytest.mark.parametrize(
    ("streams", "fields", "said"),
    [
        ([{"epochs": 2.0}, {}], {}, "s0 give epochs, the others do not"),
        ([{"epochs": 2.0}], {"weights": "tokens"}, "has no effect on streams that give epochs"),
        ([{"epochs": 2.0, "weight": 2.0}], {}, "weight=2.0 and epochs=2.0 exclude each other"),
        ([{"epochs": -1.0}], {}, r"epochs=-1.0 must lie in \(0, "),
        ([{}], {"temperature": 0.0}, r"data.temperature=0.0 must lie in \[0.01, "),
    ],
)
def test_refusals(streams, fields, said):
    with pytest.raises(ConfigError, match=said):
        data(streams, **fields)
