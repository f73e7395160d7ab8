"""Rows of a mixture by number: limits, nothing lost, changes of weights, tables on disk."""

import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.image_tokens import image_layout
from mllm_jax.data.index.pairing import pair_up
from mllm_jax.data.mixture.plan import Phase, Plan


class Lengths:
    """A stream of which only the lengths are known."""

    languages: tuple[str, ...] = ("eu",)

    def __init__(self, sizes, tiles):
        self.sizes, self.tiles = np.asarray(sizes), np.asarray(tiles)

    def __len__(self):
        return len(self.sizes)


@pytest.fixture
def plan(tmp_path):
    def make(seed=0, streams=None, sizes=None, **changes) -> Plan:
        rng = np.random.default_rng(1)
        lengths = [Lengths(rng.integers(5, 60, n), rng.integers(0, 3, n)) for n in (70, 400)]
        if sizes is not None:
            lengths[1].sizes = sizes
        named = {"a": {"path": str(tmp_path / "a.json")}, "b": {"path": "b.json", "weight": 3.0}}
        for name, of in (streams or {}).items():
            named[name] |= of
        configs = {name: StreamConfig(**of) for name, of in named.items()}
        fields = {"languages": ("eu",), "length": 64, "image_slots": 3, "rows": 4, "window": 32}
        return Plan(lengths, DataConfig(configs, **(fields | changes)), seed)

    return make


def test_a_row_keeps_the_limits_and_every_position_comes_once(plan):
    made = plan()
    rows = [made.row(number) for number in range(400)]
    assert all(len({ref.position // 470 for ref in row}) == 1 for row in rows)
    seen = [ref for row in rows for ref in row]
    whole = max(ref.position for ref in seen) // 470 * 470  # passes; a window ends with each
    assert whole > 0
    assert sorted(r.position for r in seen if r.position < whole) == list(range(whole))
    assert [r for n in range(40, 60) for r in made.row(n)] == [
        r for n in range(40, 60) for r in plan().row(n)
    ]


def rows(plan: Plan) -> list:
    return [plan.row(number) for number in range(100)]


@pytest.fixture
def packed(monkeypatch) -> list[int]:
    """First positions of the windows that are packed."""
    starts: list[int] = []
    pack = Phase._pack

    def noting(self, span):
        starts.append(span.start)
        return pack(self, span)

    monkeypatch.setattr(Phase, "_pack", noting)
    return starts


def test_the_table_is_kept_and_taken_for_the_same_plan(plan, tmp_path, packed):
    counted = plan()
    counted.count(steps=50)
    expected = counted.row(199)
    tables = list((tmp_path / "a.json.index" / "plans").glob("*.rows"))
    assert len(tables) == 1
    packed.clear()
    assert plan().row(199) == expected
    assert len(packed) == 1, "one window is packed to find a row of the table"


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"length": 80},
        {"image_slots": 4},
        {"window": 16},
        {"window": 64},
        {"row_examples": 2},
        {"pack": False},
        {"streams": {"a": {"weight": 1.5}}},
        {"streams": {"a": {"epochs": 2.0}, "b": {"epochs": 1.0, "weight": 1.0}}},
    ],
)
def test_another_plan_never_takes_the_table(plan, tmp_path, other):
    """It is what it would be without one; any option that decides rows is in the table's name."""
    alone = rows(plan(index=str(tmp_path / "alone"), **other))
    plan().count(steps=50)
    assert rows(plan(**other)) == alone != rows(plan())


def test_other_lengths_never_take_the_table(plan, tmp_path):
    longer = np.random.default_rng(5).integers(5, 64, 400)
    alone = rows(plan(index=str(tmp_path / "alone"), sizes=longer))
    plan().count(steps=50)
    assert rows(plan(sizes=longer)) == alone


def test_no_row_holds_more_examples_than_the_limit(plan):
    made, free = plan(row_examples=2), plan()
    held = [len(made.row(number)) for number in range(300)]
    assert max(held) == 2 < max(len(free.row(number)) for number in range(300))
    seen = sorted(ref.position for number in range(300) for ref in made.row(number))
    assert seen == sorted(set(seen)), "every position comes once"


def test_the_two_records_of_a_pair_count_apart(tmp_path):
    """Twelve units of which every third is a pair, 4 tokens each record; three examples a row."""
    ones, none = np.full(16, 4), np.zeros(16, np.int64)
    members = np.array([[0, 1], [4, 5], [8, 9], [12, 13]])
    stream = pair_up(members, ones, none, np.ones(4, bool), ("eu",))
    config = {"a": StreamConfig(str(tmp_path / "a.json"), pairs="id")}
    data = DataConfig(config, ("eu",), length=64, image_slots=0, window=12, row_examples=3)
    made = Plan([stream], data, 0)
    rows = [made.row(number) for number in range(6)]
    examples = [sum(len(stream.records(ref.record)) for ref in row) for row in rows]
    assert max(examples) == 3 and sum(examples) == 16
    limit = dict(made.fill(windows=1))["best fit"]
    assert limit == (16 * 4 / (6 * 64), 0.0)


def test_a_stream_of_longer_records_is_spread_over_a_window(tmp_path):
    """Best fit takes the longest first: 64 rows with one of them, then 32 without."""
    none = np.zeros(400, np.int64)
    streams = [Lengths(np.full(400, 48), none), Lengths(np.full(400, 16), none)]
    named = {
        name: StreamConfig(str(tmp_path / "a.json"), weight=weight)
        for name, weight in (("a", 1.0), ("b", 3.0))
    }
    made = Plan(streams, DataConfig(named, ("eu",), length=64, image_slots=0, window=256), 0)
    longer = [any(ref.stream == 0 for ref in made.row(number)) for number in range(96)]
    assert sum(longer) == 64
    assert all(14 <= sum(longer[n : n + 24]) <= 18 for n in range(0, 96, 24)), longer


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
    made = plan(changes={"1": {"a": 1.5}, "3": {"a": 0.5}, "4": {"b": 9.0}})
    refs = [ref for number in range(700) for ref in made.row(number)]
    for stream, size in ((0, 70), (1, 400)):
        seen = [(ref.epoch, ref.record) for ref in refs if ref.stream == stream]
        assert len(set(seen)) == len(seen), "none comes twice"
        last = max(epoch for epoch, _ in seen)
        assert last >= 1
        for epoch in range(last - (stream == 0)):  # a window may hold the end of a small epoch
            assert sorted(r for e, r in seen if e == epoch) == list(range(size)), "none is lost"


def test_an_epoch_is_not_defined_where_weights_change(plan):
    with pytest.raises(ConfigError, match=r"train.epochs=2: with data.changes"):
        plan(changes={"5": {"a": 2.0}}).end_after(2)


def test_a_change_that_lies_far_ahead_costs_nothing(plan, packed):
    """And its table is another: rows behind the change are found with no window counted twice."""
    far = plan(changes={"200000000": {"a": 1.0}})
    assert far.row(5) == plan().row(5)
    assert far.weights(199_999_999) == [0.25, 0.75] and far.weights(200_000_000)[0] == 0.25
    assert len(packed) < 5
    near = plan(changes={"40": {"a": 9.0}})
    near.count(80)
    expected = near.row(319)
    packed.clear()
    assert plan(changes={"40": {"a": 9.0}}).row(319) == expected
    assert len(packed) == 2, "the window of the change, and that of the row"


def test_shares_over_the_steps_of_a_run(plan):
    """1 : 3 for 20 steps, 9 : 1 for 40, 1 : 1 then."""
    made = plan(changes={"20": {"a": 27.0}, "60": {"a": 3.0, "b": 3.0}})
    assert made.shares(20) == pytest.approx([0.25, 0.75])
    assert made.shares(60) == pytest.approx([(0.25 * 20 + 0.9 * 40) / 60, (15 + 4) / 60])
    assert made.shares(100)[0] == pytest.approx((0.25 * 20 + 0.9 * 40 + 0.5 * 40) / 100)


@pytest.mark.parametrize("epochs", [1e12, 3e6])
def test_more_than_can_be_planned_is_refused_at_once(plan, packed, epochs):
    with pytest.raises(ConfigError, match=r"examples; at most 1,000,000,000 are planned, give"):
        plan().end_after(epochs)
    with pytest.raises(ConfigError, match=r"train.steps=1000000000: 4,000,000,000 rows; at most"):
        plan().count(10**9)
    assert packed == []


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


def in_tiles(rng, kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, tiles) of LLaVA-NeXT's examples, as `configs/ndino` reads them."""
    if kind == "text":
        return 30 + np.minimum(rng.lognormal(5.5, 0.9, count), 8000).astype(int), np.zeros(
            count, int
        )
    median = {"captions": 3.5, "sections": 5.5}[kind]
    text = 30 + np.minimum(rng.lognormal(median, 0.8, count), 5000).astype(int)
    # pictures of an encyclopedia: small to large, most a little broader than high
    width = np.exp(rng.normal(6.5, 0.7, count)).astype(int) + 1
    height = np.maximum(1, width / np.exp(rng.normal(0.15, 0.35, count))).astype(int)
    grids = GridsConfig("wh", rounding="original", several_images="pad")
    sizes = zip(height.tolist(), width.tolist(), strict=True)
    layouts = [image_layout(size, 336, 14, grids) for size in sizes]
    tokens, tiles = np.array([(of.placeholders, of.tiles) for of in layouts]).T
    return text + tokens, tiles


@pytest.mark.slow
def test_rows_with_tiles_leave_few_slots_empty(tmp_path, capsys):
    """95 % of 15 slots and 90 % of 8,192 tokens, images of all sizes beside text."""
    rng, weights = np.random.default_rng(0), {"sections": 0.67, "captions": 0.29, "text": 0.04}
    streams = [Lengths(*in_tiles(rng, kind, 4000)) for kind in weights]
    named = {
        name: StreamConfig(str(tmp_path / "a.json"), language="it", weight=weight)
        for name, weight in weights.items()
    }
    data = DataConfig(named, ("it",), length=8192, image_slots=15, rows=8)
    found = Plan(streams, data, 0).fill(windows=2)
    with capsys.disabled():
        for way, (tokens, slots) in found.items():
            print(f"\n{way}: {tokens:.1%} of tokens, {slots:.1%} of slots", end="")
    assert found["best fit"][0] > 0.9 and found["best fit"][1] > 0.95
