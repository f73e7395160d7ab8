"""Image embeddings of conversations, computed once and handed to whatever asks about them."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int32, UInt8

from mllm_jax.data.images.tiles import Tiles


def slots_of(pictures: Sequence[Tiles]) -> int:
    """Image slots that the pictures of a conversation take."""
    return sum(len(picture.pixels) for picture in pictures)


class Images:
    """The pictures of some conversations and their embeddings; see `Answerer.embed`.

    Attributes:
        pictures: of each conversation.
        squares: pixels of all different squares; None where there are no pictures.
        embeddings: of the squares, [Q, P, D]; None where there are no pictures.
    """

    squares: UInt8[np.ndarray, "_ height width C"] | None
    embeddings: jax.Array | None

    def __init__(self, pictures: Sequence[Sequence[Tiles]]):
        """Numbers the squares; a picture that occurs again is not counted again."""
        self.pictures = pictures
        different = {id(tiles): tiles for each in pictures for tiles in each}
        ends = np.cumsum([len(tiles.pixels) for tiles in different.values()], dtype=np.int64)
        last = dict(zip(different, ends.tolist(), strict=True))
        self._numbers = [
            [n for t in each for n in range(last[id(t)] - len(t.pixels), last[id(t)])]
            for each in pictures
        ]
        pixels = [tiles.pixels for tiles in different.values()]
        self.squares = np.concatenate(pixels) if pixels else None
        self.embeddings = None

    @property
    def counts(self) -> list[int]:
        """Image slots of each conversation; 0 for none at all."""
        return [0, *map(len, self._numbers)]

    @property
    def placeholders(self) -> list[list[Tiles]]:
        """The pictures with a single pixel a square, where only their places are needed."""
        return [
            [Tiles(np.zeros((len(t.pixels), 1, 1, 3), np.uint8), t.placeholders) for t in each]
            for each in self.pictures
        ]

    def of(self, items: Sequence[int]) -> "Images":
        """Those of some of the conversations, with the same embeddings."""
        chosen = Images([self.pictures[n] for n in items])
        chosen.squares, chosen.embeddings = self.squares, self.embeddings
        chosen._numbers = [self._numbers[n] for n in items]
        return chosen

    def slots(self, rows: int, slots: int) -> Int32[np.ndarray, "rows slots"]:
        """Which square is in each slot of each row; 0 where none is."""
        numbers = np.zeros((rows, slots), np.int32)
        for row, squares in zip(numbers, self._numbers, strict=False):
            row[: len(squares)] = squares
        return numbers
