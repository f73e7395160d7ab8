"""Packing: nothing lost or split, limits kept, any row found by its number; masks drawn by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.batch import NEWLINE, Example
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.data.mixture import packing
from mllm_jax.data.mixture.packing import (
    CUT,
    FITS,
    IMAGES,
    LONG,
    Lengths,
    Limit,
    assemble,
    best_fit,
    fate,
    first_fit,
    spread,
)

EXAMPLES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), max_size=60)


@settings(max_examples=100, deadline=None)
@given(EXAMPLES, st.integers(20, 50), st.integers(3, 6))
def test_best_fit_loses_nothing_and_keeps_the_limits(examples, length, slots):
    sizes, images = [e[0] for e in examples], [e[1] for e in examples]
    rows = best_fit(sizes, images, length, slots)
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    for row in rows:
        assert sum(sizes[i] for i in row) <= length
        assert sum(images[i] for i in row) <= slots
        assert row == sorted(row)
    assert rows == sorted(rows)
    assert rows == best_fit(sizes, images, length, slots)
    # two rows that would fit together are never left apart, or the later one had not been opened
    for one in rows:
        for other in rows:
            if one is not other and sum(sizes[i] for i in (*one, *other)) <= length:
                assert sum(images[i] for i in (*one, *other)) > slots


def test_best_fit_by_hand():
    assert best_fit([5, 3, 9, 2, 4, 1, 6, 2], [0] * 8, 10, 0) == [[0, 1, 3], [2, 5], [4, 6], [7]]
    assert best_fit([2, 2, 2, 2], [1, 1, 1, 0], 10, 2) == [[0, 1, 3], [2]]
    assert best_fit([10, 10], [0, 0], 10, 0) == [[0], [1]]


def test_best_fit_looks_at_rows_with_more_free_slots_too():
    """The row of 8 has no image and less room than the row of 5 with one."""
    assert best_fit([8, 5, 2], [0, 1, 0], 10, 1) == [[0, 2], [1]]


def test_best_fit_places_images_first_among_equal_lengths():
    assert best_fit([5] * 4, [0, 1, 0, 1], 10, 1) == [[0, 1], [2, 3]]


def test_best_fit_fills_to_the_last_token():
    assert best_fit([6, 4, 3, 7], [0] * 4, 10, 0) == [[0, 1], [2, 3]]


def test_a_limit_of_examples_by_hand():
    """What is one too many begins another row; nothing is lost or cut."""
    sizes, none = [5, 3, 9, 2, 4, 1, 6, 2], [0] * 8
    two = Limit(2)
    assert best_fit(sizes, none, 10, 0, two) == [[0, 1], [2, 5], [3, 7], [4, 6]]
    assert first_fit(sizes, none, 10, 0, two) == [[0, 1], [2, 5], [3, 4], [6, 7]]
    assert best_fit(sizes, none, 10, 0, Limit(1)) == [[i] for i in range(8)]
    assert best_fit(sizes, none, 10, 0, Limit(8)) == best_fit(sizes, none, 10, 0)


def test_a_pair_counts_as_two_examples():
    """The pair of 4 tokens does not fit beside two records, though there is room for its tokens."""
    sizes, counts = [5, 1, 4, 2], [1, 1, 2, 1]
    assert best_fit(sizes, [0] * 4, 20, 0, Limit(3, counts)) == [[0, 2], [1, 3]]
    assert first_fit(sizes, [0] * 4, 20, 0, Limit(3, counts)) == [[0, 1, 3], [2]]


@settings(max_examples=100, deadline=None)
@given(EXAMPLES, st.integers(2, 5), st.data())
def test_no_row_holds_more_than_the_limit(examples, most, data):
    sizes, images = [e[0] for e in examples], [e[1] for e in examples]
    counts = data.draw(st.lists(st.integers(1, 2), min_size=len(sizes), max_size=len(sizes)))
    rows = best_fit(sizes, images, 40, 4, Limit(most, counts))
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    assert all(sum(counts[i] for i in row) <= most for row in rows)


@settings(max_examples=100, deadline=None)
@given(EXAMPLES.filter(bool), st.integers(0, 3), st.integers(0, 2**40))
def test_spread_is_a_permutation_by_its_seed(examples, streams, seed):
    sizes, images = [e[0] for e in examples], [e[1] for e in examples]
    rows = best_fit(sizes, images, 25, 3)
    number = np.arange(len(sizes)) % (streams + 1)
    order = spread(rows, number, [seed, 7])
    assert sorted(order) == rows
    assert order == spread(rows, number, [seed, 7])


def test_spread_gives_every_row_any_place():
    """Of one kind of rows, each place about as often (chi-square, 11 degrees, p = 0.001: 31.3)."""
    rows, streams, seen = [[n] for n in range(12)], np.zeros(12, np.int64), np.zeros((12, 12))
    for seed in range(2400):
        for place, row in enumerate(spread(rows, streams, [seed])):
            seen[row[0], place] += 1
    assert ((seen - 200) ** 2 / 200).sum(axis=1).max() < 31.3 + 10  # the worst of 12 rows


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_spread_brings_each_kind_of_row_evenly(share):
    """In any k rows side by side: those of a kind within 2 of their share, at any size."""
    rng = np.random.default_rng(0)
    for count in (13, 100, 1000):
        streams = (rng.random(count) < share).astype(np.int64)
        rows = [[n] for n in range(count)]
        kinds = streams[[row[0] for row in spread(rows, streams, [count])]]
        run = np.concatenate([[0], np.cumsum(kinds)])
        for k in (4, 8, 64):
            inside = run[k:] - run[:-k]
            assert abs(inside - k * streams.mean()).max(initial=0) <= 2


def test_spread_is_frozen():
    """A run of today is resumed by a numpy of tomorrow: this order must never change."""
    rows = [[0], [1, 2], [3], [4, 5], [6], [7]]
    order = spread(rows, np.array([0, 1, 1, 0, 1, 0, 1, 0]), [3, 1])
    assert [row[0] for row in order] == FROZEN


FROZEN = [7, 0, 1, 3, 6, 4]


def lengths(*records: tuple[int, int, int, int]) -> Lengths:
    return Lengths(*np.array(records, np.int64).T)


def test_fate():
    """size, images, first trained token, last seat; a row of 6 tokens and 1 image."""
    records = lengths(
        (6, 1, 5, 3),  # fits
        (7, 1, 5, 3),  # iiiiqaa: one trained token remains when cut
        (8, 1, 6, 5),  # qqiiiiae: nothing trained would remain
        (8, 1, 5, 6),  # an image would be cut
        (9, 0, 1, -1),  # text alone can be cut
        (3, 2, 2, 1),  # more images than slots
    )
    assert fate(records, 6, 1, "cut").tolist() == [FITS, CUT, LONG, LONG, CUT, IMAGES]
    for policy in ("drop", "fail"):
        assert fate(records, 6, 1, policy).tolist() == [FITS, LONG, LONG, LONG, LONG, IMAGES]


def example(tokens, weights, seats, images, stream=0, language=0) -> Example:
    return Example(
        np.array(tokens, np.int32),
        np.array(weights, np.float32),
        np.array(seats, np.int32),
        tuple(images),
        stream,
        language,
        "s/1",
    )


def grey(value: int, patches: int = 2) -> Tiles:
    """A picture of one square."""
    return Tiles(np.full((1, 2, 2, 3), value, np.uint8), np.arange(patches, dtype=np.int32))


ABC = example([11, 12, 13], [0, 1, 1], [-1, -1, -1], [])
IMG = example([14, 9, 9, 15, 16], [0, 0, 0, 1, 1], [-1, 0, 1, -1, -1], ["a"], 1, 1)
TWO = example([9, 9, 9, 9, 17], [0, 0, 0, 0, 1], [0, 1, 2, 3, -1], ["b", "c"], 0, 1)
TILED = example([9, 9, 9, 9, 9, 18], [0, 0, 0, 0, 0, 1], [0, 1, 3, 4, NEWLINE, -1], ["d"], 0, 0)
TILED_PIXELS = Tiles(
    np.arange(4, 7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
    np.array([0, 1, 3, 4, NEWLINE], np.int32),
)


def test_assemble_by_hand():
    row = assemble([ABC, IMG], [grey(7)], 10, 2, 2, 2)
    assert row.tokens.tolist() == [11, 12, 13, 14, 9, 9, 15, 16, 0, 0]
    assert row.segments.tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 0]
    assert row.targets.tolist() == [12, 13, 0, 9, 9, 15, 16, 0, 0, 0]
    assert row.weights.tolist() == [1, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert row.image_index.tolist() == [-1, -1, -1, -1, 0, 1, -1, -1, -1, -1]
    assert row.streams.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert row.languages.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert row.pixels.tolist() == [*grey(7).pixels.tolist(), *grey(0).pixels.tolist()]


def test_images_of_a_row_share_its_slots():
    row = assemble([IMG, TWO], [grey(1), grey(2), grey(3)], 10, 3, 2, 2)
    assert row.image_index.tolist() == [-1, 0, 1, -1, -1, 2, 3, 4, 5, -1]
    assert row.pixels[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_tiles_take_a_slot_each_and_newlines_the_place_behind_all_slots():
    """An image of one square, one of three tiles, P = 2: a row of 5 slots, 5 * 2 the newline."""
    row = assemble([IMG, TILED], [grey(1), TILED_PIXELS], 12, 5, 2, 2)
    assert row.image_index.tolist() == [-1, 0, 1, -1, -1, 2, 3, 5, 6, 10, -1, -1]
    assert row.pixels[:, 0, 0, 0].tolist() == [1, 4, 5, 6, 0]
    swapped = assemble([TILED, IMG], [TILED_PIXELS, grey(1)], 12, 4, 2, 2)
    assert swapped.image_index.tolist() == [0, 1, 3, 4, 8, -1, -1, 6, 7, -1, -1, -1]
    assert swapped.pixels[:, 0, 0, 0].tolist() == [4, 5, 6, 1]


def test_seats_and_images_must_agree():
    with pytest.raises(ValueError, match="2 placeholders of 1 images, 3 of the 1 given"):
        assemble([IMG], [grey(0, 3)], 10, 2, 3, 2)
    with pytest.raises(ValueError, match="2 placeholders of 1 images, 0 of the 0 given"):
        assemble([IMG], [], 10, 2, 2, 2)
    with pytest.raises(ValueError, match="s/1: tile 2 of 1 image slots"):
        assemble([TWO], [grey(0)] * 2, 10, 1, 2, 2)
    with pytest.raises(ValueError, match="2 images, which are more than those of the examples"):
        assemble([IMG], [grey(0)] * 2, 10, 2, 2, 2)


def test_stack():
    batch = packing.stack([assemble([e], [grey(0)], 10, 1, 2, 2) for e in (IMG, IMG)])
    assert batch.tokens.shape == (2, 10)
    assert batch.pixels.shape == (2, 1, 2, 2, 3)


def test_first_fit_and_no_packing_by_hand():
    sizes, images = [5, 3, 9, 2, 4, 1, 6, 2], [0, 1, 0, 1, 0, 0, 1, 0]
    assert packing.first_fit(sizes, images, 10, 1) == [[0, 1, 5], [2], [3, 4, 7], [6]]
    assert packing.one_each(sizes, images, 10, 1) == [[n] for n in range(8)]
