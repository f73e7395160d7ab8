"""Measures records in tokens: what decides the lengths, slots and rows of a stage."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mllm_jax.config.model import ModelConfig
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.templates import format_for
from mllm_jax.data.records.parse import Record

SAMPLE = 2000  # records of a stage that are tokenised


class Measured(NamedTuple):
    """The records of one stage."""

    records: int  # that are trained
    lengths: Int64[np.ndarray, "n"]  # tokens of the sampled ones, images with all their patches
    images: Int64[np.ndarray, "n"]  # of the sampled ones
    answers: Int64[np.ndarray, "n"]  # trained tokens of the sampled ones

    @property
    def mean(self) -> float:
        """Tokens of an example."""
        return float(self.lengths.mean())


def measure(
    records: int,
    sample: Sequence[tuple[str, Record]],
    tokenizer: Any,
    model: ModelConfig,
) -> Measured:
    """Tokenises a sample of a stage's records.

    Args:
        records: number of all that are trained.
        sample: (format, record); documents have the format "document".
        tokenizer: as `load_tokenizer` gives it.
        model: whose image token and patches count.

    Raises:
        ConfigError: a format does not fit the tokenizer.
    """
    lengths, images, answers = [], [], []
    for name in sorted({name for name, _ in sample}):
        chosen = [record for other, record in sample if other == name]
        chat = Chat(
            tokenizer,
            format_for("plain" if name == "document" else name, tokenizer),
            model.image_token,
            model.patches,
        )
        if name == "document":
            ends = chat.completions([record.text for record in chosen]).ends
            sizes = np.diff(ends, prepend=0).tolist()
            trained = sizes
        else:
            encoded = chat.encode_batch([record.turns for record in chosen])
            sizes = [len(one.tokens) for one in encoded]
            trained = [int(one.weights.sum()) for one in encoded]
        lengths += sizes
        answers += trained
        images += [len(record.images) for record in chosen]
    return Measured(records, np.array(lengths), np.array(images), np.array(answers))
