"""Examples -> rows of fixed length with a fixed number of image slots, by pure functions.

A window of consecutive positions is packed on its own, so any row of the past or the future can be
found by packing one window, once the number of rows of the windows before it is known:

    positions   0 1 2 3 4 5 6 7 | 8 9 ...          window = 8
    lengths     5 3 9 2 4 1 6 2 | ...              length = 10
    rows        [0 1 3] [2 5] [4 6] [7] | ...      best fit, longest first; then in order
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from mllm_jax.batch import Batch, Example

Window = list[list[int]]  # rows of numbers of positions inside the window


def best_fit(sizes: Sequence[int], images: Sequence[int], length: int, image_slots: int) -> Window:
    """Places each example, longest first, into the row where it leaves the least room.

    Args:
        sizes: tokens of each example, image seats included; none above `length`.
        images: images of each example; none above `image_slots`.
        length: tokens of a row.
        image_slots: images of a row.

    Returns:
        Rows of indices into `sizes`, ascending within a row, rows by their first index. Every index
        stands once.
    """
    rows: Window = []
    room = np.zeros(len(sizes), np.int64)
    slots = np.zeros(len(sizes), np.int64)
    for i in np.argsort(-np.asarray(sizes, np.int64), kind="stable").tolist():
        n = len(rows)
        fits = (room[:n] >= sizes[i]) & (slots[:n] >= images[i])
        if fits.any():
            row = int(np.where(fits, room[:n], length + 1).argmin())
            rows[row].append(i)
        else:
            row = n
            rows.append([i])
            room[row], slots[row] = length, image_slots
        room[row] -= sizes[i]
        slots[row] -= images[i]
        assert min(room[row], slots[row]) >= 0, "an example above the limits reached the packing"
    return sorted(sorted(row) for row in rows)


class Rows:
    """Row number -> positions of the mixture. One count per window makes any row cheap to find.

    Thread-safe: the threads of a loader share one.
    """

    def __init__(self, pack: Callable[[range], Window], window: int):
        """`pack` gives the rows of a range of positions, as indices into it: at least one row."""
        self._pack, self._window = pack, window
        self._starts = [0]  # rows before window w
        self._recent: OrderedDict[int, Window] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> list[int]:
        """The positions in a row."""
        with self._lock:
            while self._starts[-1] <= row:
                self._extend()
            window = bisect.bisect_right(self._starts, row) - 1
            packed = self._packed(window)
            return [window * self._window + i for i in packed[row - self._starts[window]]]

    def before(self, position: int) -> int:
        """Rows, counted from the first, until every position below `position` has been in one."""
        window, offset = divmod(position, self._window)
        with self._lock:
            while len(self._starts) <= window:
                self._extend()
            # rows of a window are in order of their first positions
            part = sum(row[0] < offset for row in self._packed(window)) if offset else 0
            return self._starts[window] + part

    def _extend(self) -> None:
        self._starts.append(self._starts[-1] + len(self._packed(len(self._starts) - 1)))

    def _packed(self, window: int) -> Window:
        if window not in self._recent:
            first = window * self._window
            self._recent[window] = self._pack(range(first, first + self._window))
            if len(self._recent) > 64:
                self._recent.popitem(last=False)
        self._recent.move_to_end(window)
        return self._recent[window]


# ---------------------------------------------------------------------------------------- over-long

# what becomes of a record: taken, cut, too many tokens, too many images
FITS, CUT, LONG, IMAGES = range(4)


class Lengths(NamedTuple):
    """What packing needs to know of the records of a stream."""

    size: Int64[np.ndarray, "n"]  # tokens, image seats included
    images: Int64[np.ndarray, "n"]
    # first token that is a target (never token 0); `size` if there is none
    first_trained: Int64[np.ndarray, "n"]
    last_seat: Int64[np.ndarray, "n"]  # last token of an image span; -1 without images


def fate(
    lengths: Lengths, length: int, image_slots: int, policy: Literal["drop", "cut", "fail"]
) -> Int64[np.ndarray, "n"]:
    """FITS, CUT, LONG or IMAGES for every record.

    CUT takes text from the end, and only where all image seats and something trained remain:

        length = 6    i i i i q a a e     -> CUT     i i i i q a      a trained token remains
                      q q i i i i a e     -> LONG    nothing trained would remain
                      q q q i i i i a     -> LONG    an image would be cut
    """
    too_long = lengths.size > length
    cuttable = (lengths.first_trained < length) & (lengths.last_seat < length)
    result = np.where(too_long, LONG, FITS)
    if policy == "cut":
        result = np.where(too_long & cuttable, CUT, result)
    return np.where(lengths.images > image_slots, IMAGES, result).astype(np.int64)


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


def assemble(
    examples: Sequence[Example],
    pixels: Sequence[UInt8[np.ndarray, "height width C"]],
    length: int,
    image_slots: int,
    patches: int,
    image_size: int,
) -> Row:
    """Lays examples side by side in one row.

    Two examples, P = 2, the second with one image (`#` are its seats), length 9:

        tokens       a b c # # d e . .
        segments     1 1 1 2 2 2 2 0 0
        positions    0 1 2 0 1 2 3 0 0
        targets      b c . # d e . . .      weights are those of the targets, 0 for image tokens
        image_index  - - - 0 1 - - - -

    Args:
        examples: together at most `length` tokens and `image_slots` images.
        pixels: their images, in order.
        length: tokens of the row.
        image_slots: images of the row; unused ones are black.
        patches: seats of an image.
        image_size: side of an image in pixels.

    Raises:
        ValueError: seats and images disagree; such a row must never reach a device.
    """
    row = _empty(length, image_slots, image_size)
    start = slot = 0
    for segment, example in enumerate(examples, start=1):
        size, images = len(example.tokens), len(example.images)
        span, inner = slice(start, start + size), slice(start, start + size - 1)
        seated = example.seats >= 0
        if not np.array_equal(example.seats[seated], np.arange(images * patches)):
            seats = int(seated.sum())
            raise ValueError(
                f"{example.record}: {seats} seats, {images} images of {patches} patches"
            )
        row.tokens[span] = example.tokens
        row.targets[inner] = example.tokens[1:]
        row.weights[inner] = example.weights[1:]
        row.segments[span] = segment
        row.positions[span] = np.arange(size)
        row.image_index[span] = np.where(seated, example.seats + slot * patches, -1)
        row.streams[span] = example.stream
        row.languages[span] = example.language
        start, slot = start + size, slot + images
    if slot != len(pixels) or slot > image_slots:
        raise ValueError(f"{slot} images in the examples, {len(pixels)} given, {image_slots} slots")
    for i, image in enumerate(pixels):
        row.pixels[i] = image
    return row


def _empty(length: int, image_slots: int, image_size: int) -> Row:
    def zeros() -> Int32[np.ndarray, "T"]:
        return np.zeros(length, np.int32)

    return Row(
        tokens=zeros(),
        targets=zeros(),
        weights=np.zeros(length, np.float32),
        segments=zeros(),
        positions=zeros(),
        image_index=np.full(length, -1, np.int32),
        streams=zeros(),
        languages=zeros(),
        pixels=np.zeros((image_slots, image_size, image_size, 3), np.uint8),
    )


def stack(rows: Sequence[Row]) -> Batch:
    """Rows of one step (or a process's share of them) as a Batch."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))
