"""Pairs of records as units: what is paired, counted and refused; rows hold both or neither."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.pairing import NO_VALUE, pair_up, partners
from mllm_jax.data.index.stream import StreamIndex, report
from mllm_jax.data.loader import Loader

LONG = "Txakur beltz bat belardian korrika, eta ume bi atzetik. "


def record(key: str, pair: object, question: str, reply: str, images: int = 0) -> dict:
    turns = [
        {"from": "human", "value": "<image>\n" * images + question},
        {"from": "gpt", "value": reply},
    ]
    one = {"id": key, "image": ["0.png"] * images, "language": "eu", "conversations": turns}
    return one if pair is None else one | {"pair": pair}


RECORDS = [
    record("a1", "a", "Zer?", "Katu.", 1),
    record("b1", 7, "Nor?", "Ume bat.", 1),
    record("a2", "a", "What is it?", "Katu.", 1),
    record("c", "c", "Zer da?", "Txakur."),
    record("b2", "7", "Who?", "A child.", 1),
    record("none", None, "Eta?", "Bai."),
]


@pytest.fixture
def build(write, picture, tokenizer, model, make_data):
    picture("0.png")

    def make(records, pairs: str | None = "pair", **changes) -> StreamIndex:
        path = str(write("s.json", records))
        data = make_data({"s": StreamConfig(path, format="llama3", pairs=pairs)}, **changes)
        return open_streams(Mixture(data, model, tokenizer))[0]

    return make


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 2**32))
def test_every_record_is_in_one_unit(values, seed):
    pairs, more = partners(np.array(values, np.uint64))
    counts = Counter(value for value in values if value != NO_VALUE)
    assert len(more) == sum(count - 2 for count in counts.values() if count > 2)
    if len(more):
        return
    assert len(pairs) == sum(count == 2 for count in counts.values())
    assert all(a < b and values[a] == values[b] for a, b in pairs.tolist())
    rng = np.random.default_rng(seed)
    together, sizes = rng.random(len(pairs)) < 0.7, rng.integers(1, 50, len(values))
    made = pair_up(pairs, sizes, sizes % 3, together, ("eu",))
    units = [made.records(unit) for unit in range(len(made))]
    assert sorted(n for unit in units for n in unit) == list(range(len(values)))
    assert units == sorted(units)
    assert [sum(int(sizes[n]) for n in unit) for unit in units] == made.sizes.tolist()
    assert [sum(int(sizes[n]) % 3 for n in unit) for unit in units] == made.tiles.tolist()
    assert made.counts["pairs"] == sum(together) and made.apart == sum(~together)
    for unit in units:
        expected = [1, 2] if len(unit) == 2 else [0]
        assert made.sides[list(unit)].tolist() == expected


def test_units_by_hand(build):
    index = build(RECORDS)
    assert [index.examples(unit) for unit in range(len(index.units))] == [
        (0, 2),
        (1, 4),
        (3,),
        (5,),
    ]
    assert [index[n].side for n in range(6)] == [1, 1, 2, 0, 2, 0]
    assert index.units.sizes.tolist()[0] == index.sizes[0] + index.sizes[2]
    assert report(index, ("eu",)).paired == {"pairs": 2, "alone": 2, "apart": 0}


def test_without_the_option_nothing_is_paired(build):
    index = build(RECORDS, pairs=None)
    assert index.units is index and index.examples(3) == (3,)
    assert {index[n].side for n in range(6)} == {0}
    assert report(index, ("eu",)).paired == {} and index.unread == {"pair": 5}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_both_records_of_a_pair_are_neighbours_in_a_row(
    write, picture, tokenizer, model, make_data, workers
):
    """In any order of the shuffle; the order does not ask whether batches say where they are."""
    picture("0.png")
    records = [record(f"{n}{s}", n // 2, f"Zer {n}?", "Bai.", 1) for n in range(9) for s in "xy"]
    records += [record(f"t{n}", None, "Nor?", LONG * (n % 3)) for n in range(1, 9) if n % 3]
    stream = StreamConfig(str(write("s.json", records)), format="llama3", pairs="pair")
    with pytest.raises(ConfigError, match="more than two records share the value of 's/1x'"):
        Loader(make_data({"s": stream}), model, tokenizer, 0)
    records = [r | {"pair": r["id"][:-1]} if "pair" in r else r for r in records]
    write("s.json", records)
    data = make_data({"s": stream}, workers=workers, image_slots=4)
    loaders = [Loader(data, model, tokenizer, 5, pairs=pairs) for pairs in (True, False)]
    seen = Counter()
    for marked, plain in zip(*(loader.iterate(0, 4) for loader in loaders), strict=True):
        assert marked.records == plain.records
        assert plain.batch.partners is None and plain.batch.spans is None
        batch = marked.batch
        for one, other in zip(batch[:9], plain.batch[:9], strict=True):
            np.testing.assert_array_equal(one, other)
        assert batch.spans is not None and batch.partners is not None
        names = [name.removeprefix("s/") for name in marked.records]
        firsts = [n for n, name in enumerate(names) if name.endswith("x")]
        assert all(names[n + 1] == f"{names[n][:-1]}y" for n in firsts)
        assert (batch.spans[..., 0, 1] > 0).sum() == len(firsts)
        rows, positions = np.nonzero(batch.partners >= 0)
        theirs = batch.targets[rows, batch.partners[rows, positions]]
        np.testing.assert_array_equal(batch.targets[rows, positions], theirs)
        np.testing.assert_array_equal(batch.weights[rows, positions], 1)
        seen.update(names)
    assert len(seen) == 18 + 6
    assert loaders[0].report()["streams"]["s"]["paired"] == {"pairs": 9, "alone": 6, "apart": 0}


def test_a_pair_that_fits_no_row_together(build):
    long = [record("l1", "l", "Zer?", LONG * 2), record("l2", "l", "What?", LONG * 2)]
    together = int(build([*RECORDS, *long], length=200).units.sizes[-1])
    index = build([*RECORDS, *long], over_long="drop", length=together)
    assert report(index, ("eu",)).paired == {"pairs": 3, "alone": 2, "apart": 0}
    index = build([*RECORDS, *long], over_long="drop", length=together - 1)
    assert report(index, ("eu",)).paired == {"pairs": 2, "alone": 2, "apart": 1}
    with pytest.raises(ConfigError) as error:
        build([*RECORDS, *long], over_long="fail", length=together - 1)
    assert str(error.value).startswith(
        "data.streams.s.pairs='pair': 1 of 3 pairs do not fit a row: 's/l1' and 's/l2' have "
    )
    assert str(error.value).endswith("set data.over_long to drop to train them apart")
    with pytest.raises(ConfigError, match=r"and 2 images together, .*image_slots=1; raise the lim"):
        build(RECORDS, image_slots=1)


def test_a_cut_record_has_no_partner(build):
    long = [record("l1", "l", "Zer?", LONG * 9), record("l2", "l", "What?", "Bai.")]
    index = build([*RECORDS, *long], over_long="cut")
    assert report(index, ("eu",)).paired == {"pairs": 2, "alone": 4, "apart": 0}


def test_what_is_refused(build):
    with pytest.raises(ConfigError, match=r"s\.pairs='other': no two records that fit a row share"):
        build(RECORDS, pairs="other")
    with pytest.raises(ConfigError, match=r"pair \['a'\] is neither text nor a number"):
        build([*RECORDS, record("x", ["a"], "Zer?", "Bai.")])


def test_the_field_may_be_one_that_the_layout_reads(build):
    """Another field is another index, beside the first one."""
    alike = [record(name, name, f"{name}?", "Bai.") | {"language": name} for name in ("eu", "en")]
    assert build([*alike, RECORDS[3]], pairs=None).pairing is None
    alike.append(record("eu2", "en", "Nor?", "Bai."))
    assert build(alike, pairs="language").units.records(0) == (0, 2)
    assert build(alike, pairs="pair").units.records(1) == (1, 2)
