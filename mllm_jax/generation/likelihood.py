"""Which tokens of which rows are scored, and the log-likelihoods that come of it.

Conversations that differ in their last token alone share a row; each row has several places at
which a token is scored, whatever token the row itself has there:

    Which? A or B  -> A           row     Which? A or B ->
    Which? A or B  -> B           scored                   A, B   both behind the last token
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.generation.images import Images
from mllm_jax.generation.shapes import power


class LogLikelihood(NamedTuple):
    """Of the tokens that were asked about."""

    sum: float  # of their log-probabilities, in nats
    greedy: bool  # whether each is the likeliest token behind those before it
    tokens: int


def shared(encoded: Sequence[Encoded], pictures: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of the conversations that can be one row, in the order of their first ones.

    Args:
        encoded: conversations.
        pictures: what tells the pictures of each apart.
    """
    groups: dict[Hashable, list[int]] = {}
    for n, (one, images) in enumerate(zip(encoded, pictures, strict=True)):
        groups.setdefault((one.tokens[:-1].tobytes(), images), []).append(n)
    return list(groups.values())


class Scored:
    """Conversations as rows, and the places that are scored.

    Attributes:
        rows: what is read.
        items: for each row a conversation that has its pictures.
    """

    def __init__(self, encoded: Sequence[Encoded], images: Images):
        """Finds the rows; `images` are those of every conversation."""
        pictures = [tuple(map(id, tiles)) for tiles in images.pictures]
        groups = shared(encoded, pictures)
        self.items = [group[0] for group in groups]
        # nothing is read behind the last token, so it is not read either
        self.rows = [Encoded(*(field[:-1] for field in encoded[n])) for n in self.items]
        # of each row [(position, token)]; of each conversation its row and its range of them
        self._pairs: list[list[tuple[int, int]]] = [[] for _ in groups]
        self._ranges: dict[int, tuple[int, int, int]] = {}
        for row, group in enumerate(groups):
            for n in group:
                begin, ends = len(self._pairs[row]), np.flatnonzero(encoded[n].weights)
                tokens = encoded[n].tokens[ends]
                self._pairs[row] += zip((ends - 1).tolist(), tokens.tolist(), strict=True)
                self._ranges[n] = row, begin, begin + len(ends)

    def places(self, rows: int) -> tuple[Int32[np.ndarray, "B M"], Int32[np.ndarray, "B M"]]:
        """Positions and the tokens that are scored behind them, in `rows` rows; 0 where unused."""
        found = np.zeros((2, rows, power(max(map(len, self._pairs)), least=8)), np.int32)
        for row, pairs in enumerate(self._pairs):
            if pairs:
                found[:, row, : len(pairs)] = np.array(pairs).T
        return found[0], found[1]

    def results(
        self, values: Float32[np.ndarray, "B M"], best: Bool[np.ndarray, "B M"]
    ) -> list[LogLikelihood]:
        """Of every conversation, from what `programs.score` gives for `places`."""
        return [
            LogLikelihood(
                float(np.sum(values[row, start:end], dtype=np.float64)),
                bool(np.all(best[row, start:end])),
                end - start,
            )
            for _, (row, start, end) in sorted(self._ranges.items())
        ]
