"""Rows by number: found from anywhere, by threads, from a table on disk."""

import threading

import numpy as np
import pytest

from mllm_jax.data.packing import best_fit
from mllm_jax.data.plan import Phase, Plan
from mllm_jax.data.rows import Rows
from mllm_jax.data_config import DataConfig, StreamConfig
from mllm_jax.errors import ConfigError


def test_rows_are_found_from_anywhere():
    sizes = np.random.default_rng(0).integers(1, 9, 10_000)

    def pack(positions):
        return best_fit(sizes[positions].tolist(), [0] * len(positions), 10, 0)

    straight = Rows(pack, 16)
    rows = [straight[r] for r in range(200)]
    flat = [p for row in rows for p in row]
    windows = max(flat) // 16  # the last one may be cut by the 200
    assert sorted(p for p in flat if p < windows * 16) == list(range(windows * 16))
    for start in (199, 3, 77):
        assert Rows(pack, 16)[start] == rows[start]
    counted = Rows(pack, 16)
    assert counted.before(0) == 0
    for position in (1, 2, 15, 16, 17, 100):
        assert counted.before(position) == sum(min(row) < position for row in rows)


def test_rows_serve_threads():
    rows = Rows(lambda positions: [[i] for i in range(len(positions))], 4)
    found: dict[int, list[int]] = {}

    def read(numbers):
        for n in numbers:
            found[n] = rows[n]

    threads = [threading.Thread(target=read, args=(range(t, 2000, 8),)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [n] for n in range(2000)}


class Lengths:
    """A stream of which only the lengths are known."""

    languages: tuple[str, ...] = ("eu",)

    def __init__(self, sizes, images):
        self.sizes, self.images = np.asarray(sizes), np.asarray(images)

    def __len__(self):
        return len(self.sizes)


@pytest.fixture
def plan(tmp_path):
    def make(seed=0, **changes) -> Plan:
        rng = np.random.default_rng(1)
        streams = [Lengths(rng.integers(5, 60, n), rng.integers(0, 3, n)) for n in (70, 400)]
        named = {
            "a": StreamConfig(str(tmp_path / "a.json")),
            "b": StreamConfig("b.json", weight=3.0),
        }
        fields = {"languages": ("eu",), "length": 64, "image_slots": 3, "rows": 4, "window": 32}
        return Plan(streams, DataConfig(named, **(fields | changes)), seed)

    return make


def test_a_row_keeps_the_limits_and_every_position_comes_once(plan):
    made = plan()
    seen = [ref for number in range(400) for ref in made.row(number)]
    whole = max(ref.position for ref in seen) // 32 * 32 - 32
    assert sorted(r.position for r in seen if r.position < whole) == list(range(whole))
    assert [r for n in range(40, 60) for r in made.row(n)] == [
        r for n in range(40, 60) for r in plan().row(n)
    ]


def test_the_table_is_kept_and_only_taken_for_the_same_lengths(plan, tmp_path, monkeypatch):
    counted = plan()
    counted.count(steps=50)
    expected = counted.row(199)
    tables = list((tmp_path / "a.json.index" / "plans").iterdir())
    assert len(tables) == 1
    packed = []
    monkeypatch.setattr(Phase, "_pack", lambda self, span, old=Phase._pack: (
        packed.append(span.start), old(self, span))[1])  # fmt: skip
    assert plan().row(199) == expected
    assert len(packed) == 1, "one window is packed to find a row of the table"
    packed.clear()
    assert plan(seed=1).row(199) != expected and len(packed) > 5
    packed.clear()
    plan(length=80).row(199)
    assert len(packed) > 5


def counts(refs, streams=2):
    return [sum(ref.stream == s for ref in refs) for s in range(streams)]


def test_weights_change_from_a_step_on_and_nothing_is_lost(plan):
    """Shares 1 : 3, from step 20 on 9 : 1, from step 60 on 1 : 1."""
    changes = {"20": {"a": 27.0}, "60": {"a": 3.0, "b": 3.0}}
    made, before = plan(changes=changes), plan()
    rows = [made.row(number) for number in range(4 * 200)]
    assert rows[: 4 * 20] == [before.row(number) for number in range(4 * 20)]
    shares = []
    for first, last in ((0, 20), (24, 60), (64, 200)):
        some = counts([ref for row in rows[4 * first : 4 * last] for ref in row])
        shares.append(some[0] / sum(some))
    np.testing.assert_allclose(shares, [0.25, 0.9, 0.5], atol=0.06)
    for stream, size in ((0, 70), (1, 400)):
        seen = [(r.epoch, r.record) for row in rows for r in row if r.stream == stream]
        assert len(set(seen)) == len(seen), "no record twice in an epoch"
        whole = max(epoch for epoch, _ in seen)  # of the last one some rows are missing here
        for epoch in range(whole - 1):
            assert sorted(r for e, r in seen if e == epoch) == list(range(size)), "all of it"
    assert [plan(changes=changes).row(n) for n in (799, 81, 0)] == [rows[n] for n in (799, 81, 0)]


def test_a_change_at_once_and_two_steps_apart(plan):
    changes = {"1": {"a": 1.5}, "3": {"a": 0.5}, "4": {"b": 9.0}}
    rows = [plan(changes=changes).row(number) for number in range(120)]
    seen = [(r.stream, r.epoch, r.record) for row in rows for r in row]
    assert len(set(seen)) == len(seen)


def test_an_epoch_is_not_defined_where_weights_change(plan):
    with pytest.raises(ConfigError, match=r"train.epochs=2: with data.changes"):
        plan(changes={"5": {"a": 2.0}}).steps(2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": {"a": 1.0}}, "data.changes.x: expected a step"),
        ({"0": {"a": 1.0}}, "data.changes.0: step=0 must lie in"),
        ({"5": {"c": 1.0}}, "data.changes.5.c: no such stream; there are a, b"),
        ({"5": {"a": 0.0}}, r"data.changes.5.a=0.0 must lie in \(0, "),
    ],
)
def test_changes_that_are_refused(plan, changes, said):
    with pytest.raises(ConfigError, match=said):
        plan(changes=changes)


def realistic(rng, kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, images) of examples as the four systems read them, an image of 576 seats."""
    if kind == "captions":  # CC3M: about ten words
        return 580 + rng.integers(8, 45, count), np.ones(count, np.int64)
    if kind == "instructions":  # LLaVA, PixMo-AMA: a question and an answer of some sentences
        text = np.minimum(rng.lognormal(4.5, 0.8, count), 1400).astype(np.int64)
        return 600 + text, np.ones(count, np.int64)
    mean = {"chats": 5.3, "paragraphs": 4.6}[kind]  # Magpie: 200 tokens at the median; Wikipedia
    text = np.minimum(rng.lognormal(mean, 0.8, count), 2000).astype(np.int64)
    return 30 + text, np.zeros(count, np.int64)


def test_rows_of_2048_tokens_are_filled(tmp_path, capsys):
    """97 % of the tokens and 90 % of the image slots, in four languages and four kinds of text."""
    rng, weights = np.random.default_rng(0), (0.45, 0.2, 0.1, 0.25)
    kinds = ("captions", "instructions", "chats", "paragraphs")
    languages = ("eu", "it", "cy", "gl")
    streams = [Lengths(*realistic(rng, kind, 20_000)) for kind in kinds]
    named = {
        language: StreamConfig(str(tmp_path / "a.json"), language=language, weight=weight)
        for language, weight in zip(languages, weights, strict=True)
    }
    data = DataConfig(named, languages, length=2048, image_slots=3, rows=8)
    found = Plan(streams, data, 0).fill(windows=16)
    with capsys.disabled():
        for way, (tokens, slots) in found.items():
            print(f"\n{way}: {tokens:.1%} of tokens, {slots:.1%} of slots", end="")
    assert found["best fit"][0] > 0.97 and found["best fit"][1] > 0.9
    assert found["best fit"][0] > found["first fit"][0] > found["no packing"][0]
