"""Prompts as text: a mark for each image, whatever its placeholders, also side by side."""

import numpy as np

from mllm_jax.batch import TEXT
from mllm_jax.data.chat.encoder import Encoded
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.generation.prompt_text import prompt_text


class Letters:
    """A tokenizer whose ids are characters."""

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(map(chr, ids))


def prompt(text: str, *lengths: int) -> tuple[Encoded, list[Tiles]]:
    """A prompt in whose text every # is a placeholder; images of so many placeholders."""
    tokens = np.array(list(map(ord, text)), np.int32)
    numbers = np.where(tokens == ord("#"), np.cumsum(tokens == ord("#")) - 1, TEXT)
    encoded = Encoded(tokens, np.zeros(len(text), np.float32), numbers.astype(np.int32))
    square = np.zeros((1, 1, 1, 3), np.uint8)
    return encoded, [Tiles(square, np.arange(length, dtype=np.int32)) for length in lengths]


def test_every_image_has_one_mark():
    texts = {
        ("##a##b", 2, 2): "<image>a<image>b",
        ("a####b", 2, 2): "a<image><image>b",  # side by side
        ("#####", 3, 2): "<image><image>",
        ("#a#b", 1, 1): "<image>a<image>b",
        ("##", 2): "<image>",
        ("abc",): "abc",
    }
    for (text, *lengths), expected in texts.items():
        assert prompt_text(Letters(), *prompt(text, *lengths)) == expected
