"""Writes a prompt as text: what the model reads, one mark for each image."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mllm_jax.batch import TEXT
from mllm_jax.data.chat.encoder import Encoded
from mllm_jax.data.images.tiles import Tiles

IMAGE_MARK = "<image>"  # in the place of an image's tokens


def prompt_text(tokenizer: Any, prompt: Encoded, pictures: Sequence[Tiles]) -> str:
    """The text of a prompt with its control tokens, IMAGE_MARK for all placeholders of an image.

    Args:
        tokenizer: of the model.
        prompt: tokens up to the answer.
        pictures: all of its images.
    """
    is_image = prompt.placeholders != TEXT
    lengths = [len(picture.placeholders) for picture in pictures]
    first = np.flatnonzero(is_image)[np.cumsum([0, *lengths])[:-1]]  # of each image
    parts: list[str] = []
    for inside, group in itertools.groupby(range(len(is_image)), lambda i: bool(is_image[i])):
        positions = list(group)
        if inside:
            parts.append(IMAGE_MARK * int(np.isin(positions, first).sum()))
        else:
            ids = prompt.tokens[positions].tolist()
            text = tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            parts.append(text)
    return "".join(parts)
