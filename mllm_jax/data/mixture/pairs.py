"""Says where the two records of a pair are in a row: what the regularizer over pairs reads.

Two neighbours in a row, questions q in one language and Q in another, the answer a b in both:

    tokens       B q q a b B Q a b .
    segments     1 1 1 1 1 2 2 2 2 0
    partners     - - 6 7 - - - - - -     positions whose targets are the same token of the answer
    spans        [[1, 3], [6, 7]]        the questions, from the first token that differs

`partners` is -1 everywhere unless the trained tokens of both are the same. A span ends with the
position that predicts the first trained token; where all tokens before are the same it is that
position alone. Image placeholders in a span are left out by whoever reads it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from mllm_jax.batch import Example
from mllm_jax.data.mixture.packing import Counts

NOWHERE = -1  # partner of a position that has none

Partners = Int32[np.ndarray, "T"]
Spans = Int32[np.ndarray, "Q 2 2"]  # pair, side, first position and the one after the last


def most_pairs(sizes: Counts, tiles: Counts, length: int, image_slots: int, pack: bool) -> int:
    """The most pairs that a row can hold, Q: the batch's shape, so that of the compiled step.

    Args:
        sizes, tiles: tokens and image slots of all pairs; the smallest ones count.
        length, image_slots: of a row.
        pack: whether several units share a row.
    """
    if not pack:
        return 1
    by_tokens, tile = length // int(min(sizes)), int(min(tiles))
    return min(by_tokens, image_slots // tile) if tile else by_tokens


def locate(examples: Sequence[Example], length: int, most: int) -> tuple[Partners, Spans]:
    """Partners and spans of the pairs among the examples of a row.

    Args:
        examples: of a row, in order; the second of a pair behind its first.
        length: of the row.
        most: pairs that it has room for, from `most_pairs`.
    """
    partners = np.full(length, NOWHERE, np.int32)
    spans = np.zeros((most, 2, 2), np.int32)
    starts = np.cumsum([0, *(len(example.tokens) for example in examples)])
    firsts = [n for n, example in enumerate(examples) if example.side == 1]
    for pair, n in enumerate(firsts):
        one, other = examples[n], examples[n + 1]
        assert other.side == 2, f"{one.record}: the second record of its pair is not behind it"
        ours, theirs = _trained(one), _trained(other)
        if np.array_equal(one.tokens[ours + 1], other.tokens[theirs + 1]):
            partners[starts[n] + ours] = starts[n + 1] + theirs
        spans[pair] = _span(one, other, int(starts[n])), _span(other, one, int(starts[n + 1]))
    return partners, spans


def _trained(example: Example) -> np.ndarray:
    """Positions that predict a trained token."""
    return np.flatnonzero(example.weights[1:] > 0)


def _span(example: Example, other: Example, start: int) -> tuple[int, int]:
    """The question of an example that begins at `start`, from where it differs from another."""
    trained = _trained(example)
    end = int(trained[0]) + 1 if len(trained) else len(example.tokens)
    same = min(end, len(other.tokens))
    differs = np.append(example.tokens[:same] != other.tokens[:same], True)
    return start + min(int(np.argmax(differs)), end - 1), start + end
