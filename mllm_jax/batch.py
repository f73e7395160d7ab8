"""Defines what travels to the device: examples are packed into rows, rows stacked into a Batch.

Dimension letters, the same in annotations and einsum strings everywhere:

    B batch (rows)     T query length         S key length  D model width  F feed-forward width
    N query heads      K key/value heads      G = N / K     H head width   V vocabulary
    I images in a row  P patches of an image  C channels    L layers (first axis of stacked weights)
    Q pairs of a row

Image slots, I, are squares that the vision tower reads: an image is one (LLaVA-1.5), or the whole
image and its tiles (LLaVA-NeXT), each a slot. Placeholders name a patch of a slot, or the newline
vector that ends a line of patches of an image in tiles:

    in a record (slots of its images, in order)   k * P + p    NEWLINE    TEXT
    in a row (of all its records)                 i * P + p    I * P      TEXT
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Int64, UInt8

Numbers = np.ndarray | Array
# RGB bytes, or floats that are normalised already
Pixels = UInt8[Numbers, "B I height width C"] | Float[Numbers, "B I height width C"]

TEXT = -1  # placeholder of no image, in a record and in a row
NEWLINE = -2  # newline vector in a record; in a row it is I * P, since there the slots are known


class Example(NamedTuple):
    """One tokenised record: what packing places in a row, never split.

    `weights[t]` is the weight of token t as a target (1 for trained tokens, 0 otherwise).
    `placeholders[t]` is TEXT; in an image span k * P + p, patch p of the example's k-th slot, or
    NEWLINE.
    """

    tokens: Int32[np.ndarray, "T"]
    weights: Float32[np.ndarray, "T"]
    placeholders: Int32[np.ndarray, "T"]
    images: tuple[str | bytes, ...]  # paths or encoded bytes, in order of their placeholders
    stream: int  # number of the stream in the mixture
    language: int  # number of the language in the config's list
    record: str  # "stream/id", to find the record again
    side: int = 0  # 1 and 2: the first and the second of a pair, which are neighbours in a row


class Contents(NamedTuple):
    """What all rows of a step hold, an entry per example: the same in every process of a run."""

    records: list[str]  # "stream/id"
    streams: Int64[np.ndarray, "n"]  # number of the stream
    languages: Int64[np.ndarray, "n"]  # number of the language
    tokens: Int64[np.ndarray, "n"]  # image placeholders included
    images: Int64[np.ndarray, "n"]
    tiles: Int64[np.ndarray, "n"]  # image slots that the images take
    positions: int  # rows x length
    slots: int  # rows x image slots


class ModelInputs(NamedTuple):
    """What the model reads of a batch; fields as in `Batch`."""

    tokens: Int32[Numbers, "B T"]
    segments: Int32[Numbers, "B T"]
    positions: Int32[Numbers, "B T"]
    image_index: Int32[Numbers, "B T"]
    pixels: Pixels


class Batch(NamedTuple):
    """Rows stacked; the only thing a step sees. Padding: segment 0, weight 0, token 0.

    Inputs and targets are aligned once, here: `targets[t]` is the token that follows `tokens[t]` in
    the same segment, and `weights[t]` is the weight of that target (0 at the last token of a
    segment).

        tokens       a b c d e f . .
        segments     1 1 1 2 2 2 0 0      block-diagonal causal attention
        positions    0 1 2 0 1 2 0 0      restart with every segment
        targets      b c . e f . . .
    """

    tokens: Int32[Numbers, "B T"]
    targets: Int32[Numbers, "B T"]
    weights: Float32[Numbers, "B T"]
    segments: Int32[Numbers, "B T"]
    positions: Int32[Numbers, "B T"]
    # TEXT; i * P + p: patch p in image slot i of the same row; I * P: the newline vector
    image_index: Int32[Numbers, "B T"]
    streams: Int32[Numbers, "B T"]  # number of the stream a token comes from
    languages: Int32[Numbers, "B T"]  # number of its language
    # RGB after resizing and cropping; unused slots are zero
    pixels: UInt8[Numbers, "B I height width C"]
    # pairs of a row, for stages with a regularizer over them alone, see data/mixture/pairs
    partners: Int32[Numbers, "B T"] | None = None  # position of the same target in the other record
    spans: Int32[Numbers, "B Q 2 2"] | None = None  # questions: pair, side, first and behind last

    @property
    def inputs(self) -> ModelInputs:
        """The fields that the model reads; the others are for the loss."""
        return ModelInputs(
            self.tokens, self.segments, self.positions, self.image_index, self.pixels
        )
