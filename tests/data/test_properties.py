"""What must hold of any mixture: the same batches on any hosts, records once an epoch, shares."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.data.loader import Loader
from mllm_jax.data.mixture.plan import Plan

ROWS = 8


class Lengths:
    """A stream of which only the lengths are known."""

    languages: tuple[str, ...] = ("eu",)

    def __init__(self, sizes, tiles):
        self.sizes, self.tiles = np.asarray(sizes, np.int64), np.asarray(tiles, np.int64)

    def __len__(self):
        return len(self.sizes)


EXAMPLE = st.tuples(st.integers(2, 40), st.integers(0, 2))
STREAM = st.tuples(st.lists(EXAMPLE, min_size=1, max_size=40), st.floats(0.1, 10))
HOSTS = st.sampled_from([1, 2, 4, 8])
MIXTURE = st.lists(STREAM, min_size=1, max_size=4)


def plan_of(mixture, seed: int, folder) -> Plan:
    streams = [Lengths(*np.array(examples).T) for examples, _ in mixture]
    named = {
        f"s{n}": StreamConfig(str(folder / "a.json"), weight=weight)
        for n, (_, weight) in enumerate(mixture)
    }
    data = DataConfig(named, ("eu",), length=48, image_slots=3, rows=ROWS, window=64)
    return Plan(streams, data, seed)


@settings(max_examples=40, deadline=None)
@given(mixture=MIXTURE, seed=st.integers(0, 2**31), first=st.integers(0, 60))
def test_rows_of_any_mixture(mixture, seed, first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    plan = plan_of(mixture, seed, folder)
    rows = [plan.row(n) for n in range(first + 40)]
    assert [plan_of(mixture, seed, folder).row(n) for n in range(first, first + 5)] == rows[
        first : first + 5
    ], "from anywhere"
    seen: dict[int, list] = {n: [] for n in range(len(mixture))}
    for row in rows:
        examples = [mixture[ref.stream][0][ref.record] for ref in row]
        assert sum(size for size, _ in examples) <= 48
        assert sum(images for _, images in examples) <= 3
        for ref in row:
            seen[ref.stream].append((ref.epoch, ref.record))
    positions = sorted(ref.position for row in rows for ref in row)
    one_pass = sum(len(examples) for examples, _ in mixture)  # windows of 64 end there, too
    whole = positions[-1] // one_pass * one_pass
    whole += (positions[-1] - whole) // 64 * 64
    assert positions[:whole] == list(range(whole)), "nothing is left out, nothing comes twice"
    total = sum(weight for _, weight in mixture)
    for stream, (examples, weight) in enumerate(mixture):
        assert len(set(seen[stream])) == len(seen[stream]), "once an epoch"
        epochs = [epoch for epoch, _ in seen[stream]]
        for epoch in range(max(epochs, default=0) - 64 // len(examples) - 1):
            assert epochs.count(epoch) == len(examples), "the whole epoch"
        share = len(seen[stream]) - len(positions) * weight / total
        assert abs(share) <= 64 + len(mixture), "shares within one window"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, model):
    """Loaders over one small mixture on disk, by number of hosts and workers."""
    folder = tmp_path_factory.mktemp("hosts")
    rng = np.random.default_rng(0)
    streams = {}
    for language, count in (("eu", 23), ("en", 9)):
        records = [
            {"id": str(n), "language": language, "conversations": [
                {"from": "human", "value": "Zer?"},
                {"from": "gpt", "value": "Katu bat. " * int(rng.integers(1, 12))}]}
            for n in range(count)
        ]  # fmt: skip
        (folder / f"{language}.json").write_text(json.dumps(records), encoding="utf-8")
        streams[language] = StreamConfig(str(folder / f"{language}.json"), format="llama3")

    def make(host=0, hosts=1, workers=0) -> Loader:
        data = DataConfig(
            streams, ("eu", "en"), length=96, image_slots=1, rows=ROWS, window=16, workers=workers
        )
        share = range(ROWS // hosts * host, ROWS // hosts * (host + 1)) if hosts > 1 else None
        return Loader(data, model, tokenizer, 3, share)

    make()
    return make


@settings(max_examples=12, deadline=None)
@given(step=st.integers(0, 400), before=HOSTS, after=HOSTS)
def test_a_run_goes_on_with_any_number_of_hosts(made, step, before, after):
    """Steps taken by so many hosts, and the next ones by others: those of one host throughout."""
    for hosts, steps in ((before, [step]), (after, [step + 1, step + 2])):
        loaders = [made(host, hosts) for host in range(hosts)]
        for number in steps:
            whole = made().batch(number)
            parts = [loader.batch(number) for loader in loaders]
            assert [r for part in parts for r in part.records] == whole.records
            for field, all_rows in enumerate(whole.batch[:-2]):  # without those of pairs
                joined = np.concatenate([part.batch[field] for part in parts])
                np.testing.assert_array_equal(joined, all_rows)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_on_two_hosts(made, workers):
    for host in (0, 1):
        straight = [made(host, 2).batch(step) for step in range(70, 75)]
        ahead = list(made(host, 2, workers).iterate(70, 75))
        assert [b.records for b in ahead] == [b.records for b in straight]
        for one, other in zip(ahead, straight, strict=True):
            for a, b in zip(one.batch, other.batch, strict=True):
                np.testing.assert_array_equal(a, b)
