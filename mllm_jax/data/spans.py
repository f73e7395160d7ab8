"""What is trained: character spans of answers -> weights of tokens; and the seats of images."""

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


Items = list[int | Run]  # ids of special tokens, and the text between them


def expand(
    tokens: Int32[np.ndarray, "t"],
    weights: Float32[np.ndarray, "t"],
    image_token: int | None,
    patches: int,
) -> Encoded:
    """Gives every image token its seats, untrained.

    With P = 3:  a <image> b  ->  a <image> <image> <image> b, seats -1 0 1 2 -1
    """
    is_image = tokens == (-1 if image_token is None else image_token)
    if patches == 1:
        seats = np.full(len(tokens), -1, np.int32)
        found = is_image.nonzero()[0]
        seats[found] = np.arange(len(found), dtype=np.int32)
        return Encoded(tokens, weights * ~is_image, seats)
    copies = np.where(is_image, patches, 1)
    wide = np.repeat(is_image, copies)
    seats = np.full(len(wide), -1, np.int32)
    seats[wide] = np.arange(int(wide.sum()), dtype=np.int32)
    return Encoded(np.repeat(tokens, copies), np.repeat(weights * ~is_image, copies), seats)


def span_weights(run: Run, encoding: Any) -> list[float]:
    """1 for tokens inside a trained span, 0 outside; a token on the border is an error."""
    if run.spans == ((0, len(run.text)),):
        return [1.0] * len(encoding.ids)
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
