"""Packs examples into rows of fixed length with a fixed number of image slots, by pure functions.

A window of consecutive positions is packed on its own (`plan` finds the window of a row):

    positions   0 1 2 3 4 5 6 7 | 8 9 ...          window = 8
    lengths     5 3 9 2 4 1 6 2 | ...              length = 10
    rows        [0 1 3] [2 5] [4 6] [7] | ...      best fit, longest first

Best fit alone would leave rows of short examples side by side; `spread` brings the rows of a window
into an order in which every part of it holds the streams as the whole window does.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from mllm_jax.batch import NEWLINE, TEXT, Batch, Example
from mllm_jax.data.images.tiles import Tiles, of_record

Window = list[list[int]]  # rows of numbers of positions inside the window


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


Counts = Sequence[int] | Int64[np.ndarray, "n"]


class Limit(NamedTuple):
    """How many examples a row may hold, where what is packed are units of several."""

    most: int | None = None  # None: as many as fit
    counts: Counts | None = None  # examples of each unit, none above `most`; None: one

    def of(self, units: int) -> tuple[int, list[int]]:
        """The limit as a number that is never reached if there is none, and every count."""
        counts = [1] * units if self.counts is None else np.asarray(self.counts).tolist()
        return (sum(counts) + 1 if self.most is None else self.most), counts


UNLIMITED = Limit()


def best_fit(
    sizes: Counts, tiles: Counts, length: int, image_slots: int, limit: Limit = UNLIMITED
) -> Window:
    """Places each example, longest first, into the row where it leaves the least room.

    Args:
        sizes: tokens of each example, image placeholders included; none above `length`.
        tiles: image slots of each example; none above `image_slots`.
        length: tokens of a row.
        image_slots: of a row.
        limit: of the examples in a row.

    Returns:
        Rows of indices into `sizes`, ascending within a row, rows by their first index. Every index
        occurs once.
    """
    tokens, tiles = np.asarray(sizes, np.int64), np.asarray(tiles, np.int64)
    image_slots = min(image_slots, int(tiles.sum()))  # more are never used; each costs a list
    most, counts = limit.of(len(tokens))
    rows: Window = []
    left: list[int] = []  # examples that each row may still take
    # rows by free image slots; each list in order of free tokens: (tokens, number of the row)
    free: list[list[tuple[int, int]]] = [[] for _ in range(image_slots + 1)]
    for i in np.lexsort((-tiles, -tokens)).tolist():
        size, taken, count = int(tokens[i]), int(tiles[i]), counts[i]
        assert size <= length and taken <= image_slots, "an example above the limits"
        assert count <= most, "a unit of more examples than a row may hold"
        best: tuple[int, int, int] | None = None  # free tokens, row, free slots
        for slots in range(taken, image_slots + 1):
            at = bisect.bisect_left(free[slots], (size,))
            while at < len(free[slots]) and left[free[slots][at][1]] < count:
                at += 1
            if at < len(free[slots]) and (best is None or free[slots][at] < best[:2]):
                best = (*free[slots][at], slots)
        if best is None:
            room, row, slots = length, len(rows), image_slots
            rows.append([i])
            left.append(most)
        else:
            room, row, slots = best
            free[slots].pop(bisect.bisect_left(free[slots], (room, row)))
            rows[row].append(i)
        left[row] -= count
        if room > size and left[row] > 0:
            bisect.insort(free[slots - taken], (room - size, row))
    return sorted(sorted(row) for row in rows)


def first_fit(
    sizes: Counts, tiles: Counts, length: int, image_slots: int, limit: Limit = UNLIMITED
) -> Window:
    """Each example in order, into the first row that has room: what many trainers do."""
    most, counts = limit.of(len(sizes))
    rows: Window = []
    free: list[tuple[int, int, int]] = []
    examples = zip(map(int, sizes), map(int, tiles), counts, strict=True)
    for i, (size, taken, count) in enumerate(examples):
        fits = (
            row
            for row, (room, slots, left) in enumerate(free)
            if room >= size and slots >= taken and left >= count
        )
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            free.append((length, image_slots, most))
        rows[row].append(i)
        room, slots, left = free[row]
        free[row] = (room - size, slots - taken, left - count)
    return rows


def one_each(
    sizes: Counts, tiles: Counts, length: int, image_slots: int, limit: Limit = UNLIMITED
) -> Window:
    """No packing: a row for every example."""
    del tiles, length, image_slots, limit
    return [[i] for i in range(len(sizes))]


WAYS = {"best fit": best_fit, "first fit": first_fit, "no packing": one_each}


def spread(rows: Window, streams: Int64[np.ndarray, "n"], seed: Sequence[int]) -> Window:
    """The rows in a random order that spreads each kind of row evenly over the window.

    Rows are ranked by how many examples of each stream they hold, at random among equals. Ranks are
    then sorted by the fraction of r times the golden ratio: any few neighbours in this order come
    from evenly spaced ranks (the Fibonacci lattice; Knuth, TAOCP 3, section 6.4).

    Args:
        rows: indices into `streams`; every index is in one row.
        streams: number of each example's stream.
        seed: whole numbers >= 0; another seed, another order.
    """
    if len(rows) == 1:
        return rows
    width, sizes = int(streams.max()) + 1, np.array([len(row) for row in rows])
    kinds = streams[np.fromiter(itertools.chain(*rows), np.int64, len(streams))]
    cells = np.repeat(np.arange(len(rows)) * width, sizes) + kinds
    counts = np.bincount(cells, minlength=len(rows) * width)
    bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(rows) + 1)
    ranked = np.lexsort((bits[1:], *counts.reshape(len(rows), width).T[::-1]))
    places = np.arange(len(rows), dtype=np.uint64) * GOLDEN + bits[0]  # modulo 2^64
    return [rows[ranked[rank]] for rank in np.argsort(places, kind="stable")]


# ---------------------------------------------------------------------------------------- over-long

# what becomes of a record: taken, cut, too many tokens, too many tiles
FITS, CUT, LONG, IMAGES = range(4)


class Lengths(NamedTuple):
    """What packing needs to know of the records of a stream."""

    size: Int64[np.ndarray, "n"]  # tokens, image placeholders included
    tiles: Int64[np.ndarray, "n"]  # image slots
    # first token that is a target (never token 0); `size` if there is none
    first_trained: Int64[np.ndarray, "n"]
    last_placeholder: Int64[np.ndarray, "n"]  # last token of an image span; -1 without images


def fate(
    lengths: Lengths, length: int, image_slots: int, policy: Literal["drop", "cut", "fail"]
) -> Int64[np.ndarray, "n"]:
    """FITS, CUT, LONG or IMAGES for every record.

    CUT takes text from the end, and only if all image placeholders and a trained token remain:

        length = 6    i i i i q a a e     -> CUT     i i i i q a      a trained token remains
                      q q i i i i a e     -> LONG    nothing trained would remain
                      q q q i i i i a     -> LONG    an image would be cut
    """
    too_long = lengths.size > length
    cuttable = (lengths.first_trained < length) & (lengths.last_placeholder < length)
    result = np.where(too_long, LONG, FITS)
    if policy == "cut":
        result = np.where(too_long & cuttable, CUT, result)
    return np.where(lengths.tiles > image_slots, IMAGES, result).astype(np.int64)


# ----------------------------------------------------------------------------------------- assembly


class Row(NamedTuple):
    """One row of a Batch, fields as there, without the batch dimension."""

    tokens: Int32[np.ndarray, "T"]
    targets: Int32[np.ndarray, "T"]
    weights: Float32[np.ndarray, "T"]
    segments: Int32[np.ndarray, "T"]
    positions: Int32[np.ndarray, "T"]
    image_index: Int32[np.ndarray, "T"]
    streams: Int32[np.ndarray, "T"]
    languages: Int32[np.ndarray, "T"]
    pixels: UInt8[np.ndarray, "I height width C"]
    partners: Int32[np.ndarray, "T"] | None = None
    spans: Int32[np.ndarray, "Q 2 2"] | None = None


def assemble(
    examples: Sequence[Example],
    images: Sequence[Tiles],
    length: int,
    image_slots: int,
    patches: int,
    image_size: int,
) -> Row:
    """Lays examples side by side in one row.

    Two examples, P = 2, the second with one image (`#` are its placeholders), length 9:

        tokens       a b c # # d e . .
        segments     1 1 1 2 2 2 2 0 0
        positions    0 1 2 0 1 2 3 0 0
        targets      b c . # d e . . .      weights are those of the targets, 0 for image tokens
        image_index  - - - 0 1 - - - -

    Args:
        examples: together at most `length` tokens and `image_slots` tiles.
        images: theirs, in order.
        length: tokens of the row.
        image_slots: tiles of the row; unused ones are black.
        patches: of a tile, P.
        image_size: side of a tile in pixels.

    Raises:
        ValueError: placeholders and images disagree; such a row must never reach a device.
    """
    row = _empty(length, image_slots, image_size)
    start = slot = 0
    rest = iter(images)
    for segment, example in enumerate(examples, start=1):
        size, shown = len(example.tokens), list(itertools.islice(rest, len(example.images)))
        span, inner = slice(start, start + size), slice(start, start + size - 1)
        _check_placeholders(example, shown, patches)
        tiles = sum(len(image.pixels) for image in shown)
        if slot + tiles > image_slots:
            raise ValueError(f"{example.record}: tile {slot + tiles} of {image_slots} image slots")
        for image in shown:
            row.pixels[slot : slot + len(image.pixels)] = image.pixels
            slot += len(image.pixels)
        row.tokens[span] = example.tokens
        row.targets[inner] = example.tokens[1:]
        row.weights[inner] = example.weights[1:]
        row.segments[span] = segment
        row.positions[span] = np.arange(size)
        row.image_index[span] = _in_row(example.placeholders, slot - tiles, image_slots, patches)
        row.streams[span] = example.stream
        row.languages[span] = example.language
        start += size
    if next(rest, None) is not None:
        raise ValueError(f"{len(images)} images, which are more than those of the examples")
    return row


def _check_placeholders(example: Example, images: Sequence[Tiles], patches: int) -> None:
    """Raises ValueError where an example's placeholders are not those of its images."""
    placeholders = example.placeholders[example.placeholders != TEXT]
    pairs = [(len(image.pixels), image.placeholders) for image in images]
    theirs = np.concatenate([np.zeros(0, np.int32), *of_record(pairs, patches)])
    if len(images) != len(example.images) or not np.array_equal(placeholders, theirs):
        raise ValueError(
            f"{example.record}: {len(placeholders)} placeholders of {len(example.images)} images, "
            f"{len(theirs)} of the {len(images)} given"
        )


def _in_row(
    placeholders: Int32[np.ndarray, "n"], first: int, image_slots: int, patches: int
) -> Int32[np.ndarray, "n"]:
    """Placeholders of an example whose first tile is in slot `first`, as `Batch.image_index`."""
    index = np.where(placeholders >= 0, placeholders + first * patches, placeholders)
    index[placeholders == NEWLINE] = image_slots * patches
    return index


def _empty(length: int, image_slots: int, image_size: int) -> Row:
    def zeros() -> Int32[np.ndarray, "T"]:
        return np.zeros(length, np.int32)

    return Row(
        tokens=zeros(),
        targets=zeros(),
        weights=np.zeros(length, np.float32),
        segments=zeros(),
        positions=zeros(),
        image_index=np.full(length, TEXT, np.int32),
        streams=zeros(),
        languages=zeros(),
        pixels=np.zeros((image_slots, image_size, image_size, 3), np.uint8),
    )


def stack(rows: Sequence[Row]) -> Batch:
    """Rows of one step (or a process's share of them) as a Batch."""
    fields: Any = zip(*rows, strict=True)
    arrays: list[Any] = [None if field[0] is None else np.stack(field) for field in fields]
    return Batch(*arrays)
