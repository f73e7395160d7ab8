"""Adds uniform noise to the token embeddings that an update reads: NEFTune.

    x + U(-m, m),  m = alpha / sqrt(T * D)        alpha 5, T 8,192, D 4,096: m = 8.63e-4

T is the length of a row, as the Hugging Face trainer counts it: packed examples and padding
together. Image vectors stay as they are; padding has noise too, which nothing reads. What is added
is a constant to gradients.

Every row draws from a key of its own, made of the seed, the update and the number of the row in the
batch. So the noise is the same however rows are divided over devices and microbatches, and in a run
that was continued.

Source: Jain et al. 2023, NEFTune (arXiv:2310.05914), algorithm 1; transformers, trainer_utils.py,
`neftune_post_forward_hook`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key

from mllm_jax.batch import TEXT
from mllm_jax.distributed import context
from mllm_jax.distributed.sharding import constrain

DRAW = 1  # folded into the key of an update: the adapters' dropout draws other numbers


def magnitude(alpha: float, length: int, width: int) -> float:
    """m, the largest change of an embedding's number.

    Args:
        alpha: `optimizer.neftune_alpha`.
        length: tokens of a row, T.
        width: numbers of an embedding, D.
    """
    return alpha / math.sqrt(length * width)


def noise(
    alpha: float, key: Key[Array, ""], rows: Int[Array, " B"], shape: tuple[int, int]
) -> Float32[Array, "B T D"]:
    """U(-m, m) for every number of the embeddings of some rows of a batch.

    Args:
        alpha: `optimizer.neftune_alpha`.
        key: of the update.
        rows: their numbers in the batch.
        shape: (T, D) of a row.
    """
    largest, own = magnitude(alpha, *shape), jax.random.fold_in(key, DRAW)

    def of_row(row: Int[Array, ""]) -> Float32[Array, "T D"]:
        of_its_own = jax.random.fold_in(own, row)
        return jax.random.uniform(of_its_own, shape, jnp.float32, -largest, largest)

    return jax.vmap(of_row)(rows)


def with_noise(
    embeddings: Float[Array, "B T D"],
    image_index: Int[Array, "B T"],
    alpha: float,
    key: Key[Array, ""],
    rows: Int[Array, " B"],
) -> Float[Array, "B T D"]:
    """The embeddings of rows with noise where they are of text; rounded once.

    Args:
        embeddings: of tokens, image vectors in their places; in the order of `context.balanced`.
        image_index: see `Batch`; in the same order.
        alpha, key, rows: see `noise`.
    """
    _, length, width = embeddings.shape
    drawn = constrain(noise(alpha, key, rows, (length, width)), "batch", "none", "none")
    drawn = context.balanced(drawn, "none")
    noisy = (embeddings.astype(jnp.float32) + drawn).astype(embeddings.dtype)
    return jnp.where((image_index == TEXT)[:, :, None], noisy, embeddings)
