"""Weights by record, by token, by epochs, and evened out over languages."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.data.mixture.passes import BLOCK
from mllm_jax.data.mixture.weights import apportion, mixture_passes, record_weights, stream_passes


class Stream:
    def __init__(self, records: int, tokens: int, *languages: str):
        """Half of the records are one token longer than `tokens`, half one shorter."""
        self.sizes = np.full(records, tokens) + np.where(np.arange(records) % 2, 1, -1)
        self.tiles, self.languages = np.zeros(records, np.int64), languages

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


def test_by_tokens_of_unequal_lengths_the_mean_counts():
    uneven = Stream(4, 1, "eu")
    uneven.sizes = np.array([1, 1, 1, 37])  # 10 on the average
    even = Stream(10, 10, "en")
    config = data([{"weight": 1.0}, {"weight": 1.0}], weights="tokens")
    assert record_weights([uneven, even], config) == [0.5, 0.5]


def test_by_epochs_a_pass_holds_exactly_so_many_records():
    config = data([{"epochs": 2.0}, {"epochs": 1.0}, {"epochs": 0.5}])
    assert stream_passes(STREAMS, config).rates == (200, 300, 50)
    assert mixture_passes(STREAMS, config).rates == (200, 300, 50)
    np.testing.assert_allclose(np.array(record_weights(STREAMS, config)) * 550, [200, 300, 50])


def test_epochs_are_the_decimal_numbers_that_are_written():
    config = data([{"epochs": 0.1}, {"epochs": 2.3}, {"epochs": 1e-2}])
    tenth, hundredth = Fraction(1, 10), Fraction(1, 100)
    assert stream_passes(STREAMS, config).rates == (100 * tenth, 690, 100 * hundredth)


def test_by_weights_a_pass_holds_as_many_records_as_there_are():
    config = data(WEIGHTS)
    assert mixture_passes(STREAMS, config).rates == (500,)
    assert stream_passes(STREAMS, config).rates == (BLOCK // 2, BLOCK // 4, BLOCK // 4)


@pytest.mark.parametrize("sizes", [(1_000_000, 16), (3_000_000, 20), (500_000, 200, 1)])
def test_streams_of_any_sizes_may_give_epochs(sizes):
    streams = [Stream(size, 5, "eu") for size in sizes]
    passes = stream_passes(streams, data([{"epochs": 1.0}] * len(sizes)))
    assert passes.counts(1) == list(sizes) and passes.counts(7) == [7 * size for size in sizes]


def test_shares_by_weights_are_rounded_to_the_largest_remainders():
    assert apportion(["a", "b"], [2.0, 1.0]).tolist() == [43691, 21845]
    assert apportion(["a", "b", "c"], [1.0] * 3).tolist() == [21846, 21845, 21845]
    assert apportion(["a", "b"], [5.0, 3.0]).tolist() == [40960, 24576]


def test_small_shares_come_and_smaller_ones_are_refused():
    counts = apportion(["a", "b", "c"], [1.0, 2e-5, 0.5])
    assert counts.sum() == BLOCK and counts[1] == 1
    counts = apportion(["a", "b", "c"], [1.0, 1e-5, 1e-5])  # both below one position
    assert counts.tolist() == [BLOCK - 2, 1, 1]
    with pytest.raises(ConfigError, match=r"data.streams.b.weight: its share 1.0e-07"):
        apportion(["a", "b"], [1.0, 1e-7])


def test_a_pass_of_less_than_one_record_is_refused():
    with pytest.raises(ConfigError, match=r"gone through in 0\.5 records; raise the epochs"):
        stream_passes(STREAMS, data([{"epochs": 0.001}] * 3))


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
        ([{"epochs": math.inf}], {}, r"epochs=inf must lie in \(0, "),
        ([{"epochs": math.nan}], {}, r"epochs=nan must lie in \(0, "),
        ([{"epochs": 2.0}], {"temperature": 2.0}, r"temperature=2.0 would change the exact counts"),
    ],
)
def test_refusals(streams, fields, said):
    with pytest.raises(ConfigError, match=said):
        data(streams, **fields)
