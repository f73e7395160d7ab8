"""Answers one prompt about images, with the folder's own chat template.

prompt + images -> one user's turn -> template -> tokens and placeholders -> answer
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mllm_jax.common.errors import require
from mllm_jax.data.records.parse import is_text, user_turn
from mllm_jax.generation.devices import Devices
from mllm_jax.generation.engine import Answerer

ONE = Devices(1)


class Answer(NamedTuple):
    """What the model says."""

    text: str  # control tokens left out
    tokens: list[int]  # ids that were appended, a generated stop token included
    prompt_tokens: list[int]  # all ids that were fed, image placeholders expanded


def generate(
    model: str | Path,
    prompt: str,
    images: Sequence[str | Path] = (),
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    end_ids: Sequence[int] | None = None,
    devices: Devices = ONE,
) -> Answer:
    """Answers one user's turn, images first.

        generate("runs/align", "Zer ikusten da?", images=["1.png"]).text

    Args:
        model: a model folder, run folder (its last checkpoint) or Hugging Face folder.
        prompt: text; an `<image>` in it is text like any other.
        images: image files.
        max_new_tokens: where the answer is cut.
        temperature: 0 takes the likeliest token every time.
        seed: of the draws when the temperature is above 0.
        end_ids: ids that end the answer; default those of the folder, `()` for none.
        devices: that share the parameters; one answer uses one by default.

    Raises:
        ConfigError: no such model, a file that is not an image, images for a model that reads text
            only, a prompt that is too long.
    """
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    require(0 <= temperature < float("inf"), f"temperature={temperature} must be 0 or more")
    require(is_text(prompt), "the prompt is not UTF-8 text")
    opened = Answerer(model, mesh=devices.mesh())
    pictures = opened.pictures(images)
    asked = opened.prompt([user_turn(prompt, len(images))], max_new_tokens, images=images)
    (tokens,) = opened.answer(
        [asked], [pictures], max_new_tokens, temperature=temperature, seed=seed, ends=end_ids
    )
    return Answer(opened.text(tokens), tokens, np.asarray(asked.tokens).tolist())
