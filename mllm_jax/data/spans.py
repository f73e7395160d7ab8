"""What is trained: character spans of answers -> weights of tokens; and the seats of images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from mllm_jax.errors import ConfigError, require


class Encoded(NamedTuple):
    """A conversation as tokens. `seats[t]`: -1 for text, k * P + p for patch p of image k."""

    tokens: Int32[np.ndarray, "T"]
    weights: Float32[np.ndarray, "T"]
    seats: Int32[np.ndarray, "T"]


class Run(NamedTuple):
    """Text between two special tokens, encoded whole; `spans` are its trained characters."""

    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def has_borders(self) -> bool:
        """Whether a part of it is trained and a part is not: the only use of offsets."""
        return bool(self.spans) and self.spans != ((0, len(self.text)),)


Items = list[int | Run]  # ids of special tokens, and the text between them


def expand(
    tokens: Int32[np.ndarray, "t"],
    weights: Float32[np.ndarray, "t"],
    image_token: int | None,
    patches: int,
) -> Encoded:
    """Gives every image token of a record its seats, untrained.

    With P = 3:  a <image> b  ->  a <image> <image> <image> b, seats -1 0 1 2 -1
    """
    return expand_all(tokens, weights, [len(tokens)], image_token, patches)[0]


def expand_all(
    tokens: Int32[np.ndarray, "t"],
    weights: Float32[np.ndarray, "t"],
    ends: Sequence[int],
    image_token: int | None,
    patches: int,
) -> list[Encoded]:
    """`expand` of many records at once; they stand end to end, none of them empty."""
    is_image = tokens == (-1 if image_token is None else image_token)
    weights, stops = weights * ~is_image, np.asarray(ends)
    if patches > 1:
        copies = np.where(is_image, patches, 1)
        tokens, weights, is_image = (np.repeat(x, copies) for x in (tokens, weights, is_image))
        stops = np.cumsum(copies)[stops - 1]
    seats = np.cumsum(is_image, dtype=np.int32)  # so far, through all records
    before = np.concatenate([np.zeros(1, np.int32), seats[stops[:-1] - 1]])
    number = seats - 1 - np.repeat(before, np.diff(stops, prepend=0))
    number = np.where(is_image, number, np.int32(-1))
    bounds = [0, *stops.tolist()]
    return [Encoded(tokens[a:b], weights[a:b], number[a:b]) for a, b in pairwise(bounds)]


def span_weights(run: Run, encoding: Any) -> list[float]:
    """1 for tokens inside a trained span, 0 outside; a token on the border is an error."""
    if not run.has_borders:
        return [float(bool(run.spans))] * len(encoding.ids)
    weights = [0.0] * len(encoding.offsets)
    for start, end in run.spans:
        for t, (left, right) in enumerate(encoding.offsets):
            if left >= start and right <= end:
                weights[t] = 1.0
            elif right > start and left < end:
                raise ConfigError(
                    f"a token lies across the border of the answer {run.text[start:end]!r:.60}"
                )
    return weights


def check_ends(items: Items, image_token: int | None) -> None:
    """After every answer comes a special token, at once."""
    for item, after in zip(items, [*items[1:], None], strict=True):
        if isinstance(item, Run) and item.spans:
            ended = len(item.spans) == 1 and item.spans[0][1] == len(item.text)
            require(
                ended and isinstance(after, int) and after != image_token,
                "the chat template does not put a special token directly after every answer",
            )
