"""Epochs are exact counts, shares are true in every part of a window: in the rows of the steps.

Everything is counted from the rows that the steps of a run train, not from what the plan says.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.data.mixture.order import Ref
from mllm_jax.data.mixture.plan import Plan

ROWS, LENGTH = 8, 256


class Lengths:
    """A stream of which only the lengths are known."""

    languages: tuple[str, ...] = ("eu",)

    def __init__(self, sizes, tiles=None):
        self.sizes = np.asarray(sizes, np.int64)
        self.tiles = np.zeros(len(self.sizes), np.int64) if tiles is None else tiles

    def __len__(self):
        return len(self.sizes)


def plan_of(folder, lengths, streams, **fields) -> Plan:
    named = {f"s{n}": StreamConfig(str(folder / "a.json"), **of) for n, of in enumerate(streams)}
    values: dict[str, Any] = {"length": LENGTH, "image_slots": 0, "rows": ROWS} | fields
    return Plan(lengths, DataConfig(named, ("eu",), **values), 3)


def batches(plan: Plan, steps: int) -> list[list[Ref]]:
    """The examples of every step."""
    return [
        [ref for n in range(ROWS) for ref in plan.row(step * ROWS + n)] for step in range(steps)
    ]


def trained(plan: Plan, epochs: float) -> Counter:
    """How often each (stream, record) is trained by the steps of a run over `epochs`."""
    steps = plan.end_after(epochs).steps
    made = batches(plan, steps + 2)
    assert not any(made[steps:]) and made[steps - 1], "the run ends with its last example"
    return Counter((ref.stream, ref.record) for batch in made for ref in batch)


SIZES = [*range(1, 18), 31, 32, 33, 63, 64, 65, 97, 100, 127, 128, 129, 255, 257, 500, 997]
LARGE = [1000, 1023, 1025, 2047, 2048, 2049, 4096, 5000]
WINDOWS = [1, 2, 3, 7, 8, 16, 31, 64, 100, 128, 1000, 2047, 2048, 4095, 4096]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("part", range(2))
def test_an_epoch_trains_every_record_once(tmp_path, part, pack):
    """All sizes up to 17 and some up to 5,000, windows of 1 to 4,096; one, two and three epochs."""
    rng = np.random.default_rng(part)
    sizes = [*SIZES, *LARGE, *rng.integers(1, 1000, 8).tolist()]
    for n, size in list(enumerate(sizes))[part::2]:
        lengths = [Lengths(rng.integers(20, LENGTH + 1, size))]
        for window in WINDOWS[n % 5 :: 5] if size < 500 else [WINDOWS[n % len(WINDOWS)]]:
            epochs = 1 + (n + window) % 3 if size < 500 else 1
            plan = plan_of(tmp_path, lengths, [{}], window=window, pack=pack)
            counts = trained(plan, epochs)
            assert counts == {(0, r): epochs for r in range(size)}, (size, window, epochs)


def test_no_window_spans_two_epochs_of_a_set(tmp_path):
    """Without an end by epochs, too: epoch after epoch in whole rows."""
    for size in (1, 7, 100):
        lengths = [Lengths(np.random.default_rng(size).integers(20, LENGTH + 1, size))]
        plan = plan_of(tmp_path, lengths, [{}], window=2048)
        rows = [plan.row(number) for number in range(300)]
        assert all(len({ref.epoch for ref in row}) == 1 for row in rows)
        epochs = [row[0].epoch for row in rows]
        assert epochs == sorted(epochs) and epochs[-1] > 2


@pytest.mark.parametrize("epochs", [0.1, 0.5, 0.999, 1.5, 2.25])
def test_a_part_of_an_epoch_trains_that_part(tmp_path, epochs):
    for size in (1, 2, 7, 100, 1000):
        lengths = [Lengths(np.random.default_rng(size).integers(20, LENGTH + 1, size))]
        for window in (1, 16, 2048):
            counts = trained(plan_of(tmp_path, lengths, [{}], window=window), epochs)
            assert counts.total() == -(-round(1000 * epochs) * size // 1000)
            assert max(counts.values()) == np.ceil(counts.total() / size), "others come first"


@pytest.mark.parametrize(
    ("sizes", "epochs", "passes"),
    [
        ((1000, 16), (1, 1), 1),
        ((300, 40, 5), (1, 3, 0.5), 2),
        ((50, 50), (0.1, 2.5), 2),
        ((1, 1, 1), (1, 2, 3), 5),
        ((1, 4000), (1, 1), 1),
    ],
)
@pytest.mark.parametrize("window", [64, 2048])
def test_epochs_of_streams_are_exact(tmp_path, sizes, epochs, passes, window):
    rng = np.random.default_rng(0)
    lengths = [Lengths(rng.integers(20, LENGTH + 1, size)) for size in sizes]
    streams = [{"epochs": float(times)} for times in epochs]
    counts = trained(plan_of(tmp_path, lengths, streams, window=window), passes)
    for stream, (size, times) in enumerate(zip(sizes, epochs, strict=True)):
        each = np.array([counts[stream, record] for record in range(size)])
        assert each.sum() == np.ceil(times * passes * size)
        assert each.max() - each.min() <= 1


@pytest.mark.parametrize(("sizes", "weights"), [((100, 900), (1, 1)), ((5, 30, 200), (3, 2, 1))])
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_epoch_of_weights_trains_as_many_examples_as_there_are(tmp_path, sizes, weights, epochs):
    rng = np.random.default_rng(0)
    lengths = [Lengths(rng.integers(20, LENGTH + 1, size)) for size in sizes]
    streams = [{"weight": float(weight)} for weight in weights]
    counts = trained(plan_of(tmp_path, lengths, streams, window=2048), epochs)
    assert counts.total() == epochs * sum(sizes)
    for stream, size in enumerate(sizes):
        each = np.array([counts[stream, record] for record in range(size)])
        share = weights[stream] / sum(weights)
        assert abs(each.sum() - share * counts.total()) <= len(sizes)
        assert each.max() - each.min() <= 1


# ------------------------------------------------------------------------------------------- shares

MIXTURES = {
    # (examples' lengths, share) of each stream
    "long and short": [((100, 160), 0.5), ((40, 80), 0.5)],
    "one much shorter": [((180, 256), 0.6), ((8, 20), 0.4)],
    "four": [((20, 60), 0.4), ((100, 200), 0.3), ((200, 256), 0.2), ((10, 250), 0.1)],
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("window", [512, 2048, 4096])
def test_every_quarter_of_a_window_has_the_shares_of_the_mixture(tmp_path, name, window):
    """Each stream within 0.03 of its target: the worst of a mixture, by order of length, was 0.5.

    A quarter of 512 positions has 128 examples; a share of 0.5 of so many, drawn at random, would
    vary by 0.044 (one standard deviation): the rows are spread, not only shuffled.
    """
    rng = np.random.default_rng(7)
    mixture = MIXTURES[name]
    lengths = [Lengths(rng.integers(*span, 20_000)) for span, _ in mixture]
    shares = np.array([share for _, share in mixture])
    plan = plan_of(tmp_path, lengths, [{"weight": s} for _, s in mixture], window=window)
    position = row = 0
    for _ in range(4):
        rows = []
        while sum(map(len, rows)) < window:
            rows.append(plan.row(row))
            row += 1
        assert sorted(ref.position for r in rows for ref in r) == list(
            range(position, position + window)
        )
        position += window
        for quarter in np.array_split(np.arange(len(rows)), 4):
            streams = [ref.stream for n in quarter for ref in rows[n]]
            parts = np.bincount(streams, minlength=len(shares)) / len(streams)
            np.testing.assert_allclose(parts, shares, atol=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_no_batch_is_without_a_stream_of_half_the_records(tmp_path, seed):
    rng = np.random.default_rng(seed)
    lengths = [Lengths(rng.integers(100, 160, 3000)), Lengths(rng.integers(40, 80, 3000))]
    plan = plan_of(tmp_path, lengths, [{"weight": 0.5}, {"weight": 0.5}], window=2048)
    for batch in batches(plan, 400):
        share = np.mean([ref.stream for ref in batch])
        assert 0.25 <= share <= 0.75


def test_lengths_do_not_drift_inside_a_window(tmp_path):
    """One stream: the mean length of each quarter is that of the window within 6 %."""
    sizes = np.minimum(
        np.random.default_rng(0).lognormal(4, 0.8, 8192).astype(np.int64) + 1, LENGTH
    )
    plan = plan_of(tmp_path, [Lengths(sizes)], [{}], window=2048)
    row = 0
    for _ in range(4):
        rows = []
        while sum(map(len, rows)) < 2048:
            rows.append([sizes[ref.record] for ref in plan.row(row)])
            row += 1
        means = [
            np.mean(np.concatenate([rows[n] for n in quarter]))
            for quarter in np.array_split(np.arange(len(rows)), 4)
        ]
        np.testing.assert_allclose(means, np.mean(np.concatenate(rows)), rtol=0.06)
