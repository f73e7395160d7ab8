"""Repeats peculiarities of published trainings, for who wants their losses and not better ones.

What a stream may switch on is LLaVA-NDiNO's (swapUniba/LLaVA-NDiNO, llava_train_modified.py). What
it may switch off, the trained end of answers, is axolotl's for tokenizers of base models, whose
eos_token is not what ends a turn (axolotl, prompt_strategies/chat_template.py, train_on_eos).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mllm_jax.config.data import StreamConfig
from mllm_jax.data.chat.tokens import Flat
from mllm_jax.data.records.parse import IMAGE, Turn


class Switches(NamedTuple):
    """See the fields of the same names in `config.data.StreamConfig`."""

    train_control_tokens: bool = False
    drop_token_zero: bool = False
    image_first: bool = False
    train_end_of_turn: bool = True

    @classmethod
    def of(cls, stream: StreamConfig) -> "Switches":
        """Those of a stream."""
        return cls(*(getattr(stream, name) for name in cls._fields))


def move_images(turns: Sequence[Turn]) -> list[Turn]:
    """Moves a turn's only image to its front (`preprocess_multimodal`).

    ("Zer da ", IMAGE, "?")  ->  (IMAGE, "\\nZer da ?")
    """
    return [_image_first(turn) for turn in turns]


def _image_first(turn: Turn) -> Turn:
    parts = [part for part in turn.parts if part != ""]
    if parts.count(IMAGE) != 1 or parts[0] is IMAGE:
        return turn
    text = "".join(part for part in parts if isinstance(part, str)).strip()
    return turn._replace(parts=(IMAGE, f"\n{text}"))


def drop_token(flat: Flat, token: int) -> Flat:
    """Leaves a token out of all conversations, as an attention mask of `ids != token` does."""
    stays = flat.tokens != token
    return Flat(flat.tokens[stays], flat.trained[stays], np.cumsum(stays)[flat.ends - 1])
