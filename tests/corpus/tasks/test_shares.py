"""Shares of languages and tasks: the worked examples, in what the mixture really draws."""

import numpy as np
import pytest
import yaml

from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.data import DataConfig
from mllm_jax.corpus.tasks.shares import task_weights
from mllm_jax.data.mixture.order import Order
from mllm_jax.data.mixture.passes import BLOCK
from mllm_jax.data.mixture.weights import mixture_passes, record_weights, stream_passes
from tests.corpus.tasks.test_tasks import CAT, PAPER, run, write

TASKS = ("mvqa", "ep", "bvqa")
CAT_EU = {"q": CAT["q"], "a": CAT["a"]}
ENGLISH = {0.4: 0.7143, 0.7: 0.5882, 1.0: 0.5, 1.5: 0.4}


class Stream:
    """A stream of so many examples, as the mixture measures it."""

    def __init__(self, count: int, language: str):
        self.sizes, self.tiles = np.full(count, 100), np.ones(count, np.int64)
        self.languages = (language,)

    def __len__(self) -> int:
        return len(self.sizes)


def config_of(weights: dict[tuple[str, str], float]) -> DataConfig:
    streams = {
        f"{task}_{code}": {"path": "x.jsonl", "task": task, "language": code, "weight": weight}
        for (task, code), weight in weights.items()
    }
    return loading.build(DataConfig, {"streams": streams, "languages": list(PAPER)})


def drawn(weights: dict[tuple[str, str], float], positions: int = BLOCK) -> dict:
    """(task, language) -> share of so many positions of the mixture."""
    data = config_of(weights)
    streams = [Stream(1000, code) for _, code in weights]
    order = Order(list(data.streams), [1000] * len(streams), stream_passes(streams, data), seed=3)
    counts = np.bincount(order.take(np.arange(positions)).stream, minlength=len(weights))
    return dict(zip(weights, (counts / positions).tolist(), strict=True))


@pytest.mark.parametrize("ratio", ENGLISH)
def test_english_share_of_what_is_drawn(ratio):
    shares = drawn(task_weights(TASKS, PAPER, ratio))
    assert round(shares["mvqa", "en"], 4) == ENGLISH[ratio]
    others = sum(share for (_, code), share in shares.items() if code != "en")
    assert others == pytest.approx(ratio * shares["mvqa", "en"], abs=3e-4)


def test_ratio_one_in_ten_languages():
    shares = drawn(task_weights(TASKS, PAPER))
    assert len(shares) == 1 + 3 * 9
    for code in PAPER[1:]:
        of = [100 * share for (_, other), share in shares.items() if other == code]
        assert [round(share, 2) for share in of] == [1.85] * 3
        np.testing.assert_allclose(of, 1.852, atol=100 / BLOCK)
        np.testing.assert_allclose(sum(of), 5.556, atol=300 / BLOCK)
    exact = record_weights([Stream(9, c) for _, c in shares], config_of(task_weights(TASKS, PAPER)))
    np.testing.assert_allclose(exact, [0.5] + [1 / 54] * 27)
    stage_1 = drawn(task_weights(("mvqa",), PAPER))
    assert stage_1["mvqa", "hr"] == pytest.approx(1 / 18, abs=1 / BLOCK)


def test_a_task_that_is_left_out_means_fewer_records():
    """Each stream that remains has as many records as before."""
    weights = task_weights(TASKS, PAPER)
    sizes = {pair: round(54_000 * weight) for pair, weight in weights.items()}
    fewer = task_weights(TASKS, PAPER, without=("ep",))
    assert fewer == {pair: w for pair, w in weights.items() if pair[0] != "ep"}
    for kept in (weights, fewer):
        streams = [Stream(sizes[pair], pair[1]) for pair in kept]
        data = config_of(kept)
        total = int(mixture_passes(streams, data).rates[0])  # an epoch of the stage
        counts = np.array(record_weights(streams, data)) * total
        np.testing.assert_allclose(counts, [sizes[pair] for pair in kept], rtol=1e-4)


def test_refill_gives_the_share_to_the_other_tasks():
    shares = drawn(task_weights(TASKS, PAPER, without=("ep",), refill=True))
    assert round(shares["mvqa", "en"], 4) == 0.5
    assert 100 * shares["bvqa", "zh"] == pytest.approx(2.778, abs=100 / BLOCK)
    assert ("ep", "zh") not in shares


def test_without_the_non_english_tasks_english_remains():
    assert task_weights(TASKS, PAPER, without=TASKS) == {("mvqa", "en"): 1.0}
    assert ("mvqa", "en") in task_weights(TASKS, PAPER, without=("mvqa",))


def test_shares_are_relative_to_english():
    with pytest.raises(ConfigError, match="relative to en"):
        task_weights(TASKS, ("eu", "es"))


def section(out) -> DataConfig:
    return loading.build(DataConfig, yaml.safe_load((out / "streams.yaml").read_text("utf-8")))


def test_the_block_of_streams_is_a_section_of_a_stage(tmp_path):
    source = write(tmp_path / "a.jsonl", [CAT])
    out = tmp_path / "out"
    words = (source, "--out", out, "--ratio", "0.4", "--images", tmp_path, "--format", "vicuna_v1")
    assert run(*words) == 0
    data = section(out)
    epochs = {name: stream.epochs for name, stream in data.streams.items()}
    assert epochs == {  # bvqa_eu has two records
        "mvqa_en": 1.0,
        "mvqa_eu": pytest.approx(0.4 / 3, abs=1e-7),
        "ep_eu": pytest.approx(0.4 / 3, abs=1e-7),
        "bvqa_eu": pytest.approx(0.2 / 3, abs=1e-7),
    }
    assert {stream.task for stream in data.streams.values()} == set(TASKS)
    assert all(stream.format == "vicuna_v1" for stream in data.streams.values())


@pytest.mark.parametrize(("more", "share"), [((), 1 / 3), (("--refill",), 1 / 2)])
def test_records_that_lack_texts_do_not_change_the_shares(tmp_path, more, share):
    """Half of the records have no Basque: the others are read twice as often."""
    english = [
        CAT | {"id": n, "q": {"en": "Who?"}, "a": {"en": "A cat."}} | ({} if n % 2 else CAT_EU)
        for n in range(40)
    ]
    source = write(tmp_path / "a.jsonl", english)
    out = tmp_path / "out"
    assert run(source, "--out", out, "--without", "ep", *more) == 0
    data = section(out)
    assert list(data.streams) == ["mvqa_en", "mvqa_eu", "bvqa_eu"]
    streams = [Stream(n, code) for n, code in ((40, "en"), (20, "eu"), (40, "eu"))]
    counts = np.array([float(rate) for rate in mixture_passes(streams, data).rates])
    np.testing.assert_allclose(counts, [40, 40 * share, 40 * share], rtol=1e-5)
