"""What `convert join` adds to two backbones: a fresh connector, and new rows of token tables.

Seeds: every parameter draws from its own generator, seeded by (seed, crc32 of its path), so that no
draw depends on the order in which parameters are written.
"""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

from mllm_jax.checkpoints.hf.tensor_files import DTYPES
from mllm_jax.checkpoints.leaves import Leaf

ROWS = 64  # token tables are padded to a multiple of this, as with pad_to_multiple_of=64
BLOCK = 8192  # rows of a token table in float32 at the same time
TABLES = ("language/embedding", "language/head/kernel")


def generator(path: str, seed: int) -> np.random.Generator:
    """The random numbers of one parameter."""
    return np.random.default_rng([seed, zlib.crc32(path.encode())])


def fresh_connector(abstract: Mapping[str, Any], dtype: str, seed: int) -> dict[str, Leaf]:
    """Leaves of a new connector.

    Kernels are normal with deviation 1 / sqrt(inputs), which keeps the variance of features; biases
    are zero.

    Args:
        abstract: path -> shape, of the whole model.
        dtype: name of a number format.
        seed: of the draws.
    """

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("bias"):
            return np.zeros(shape, DTYPES[dtype])
        noise = generator(path, seed).standard_normal(shape, np.float32)
        return (noise / np.float32(np.sqrt(shape[0]))).astype(DTYPES[dtype])

    return {
        p: Leaf(tuple(x.shape), DTYPES[dtype], partial(draw, p, tuple(x.shape)))
        for p, x in abstract.items()
        if p.startswith("connector/")
    }


class NewRows(NamedTuple):
    """How new rows of a token table are drawn: from N(mean, scale * covariance) of old rows."""

    scale: float
    own_head: bool  # the output table's from its own old rows, else from the token table's


NEW_ROWS = {
    # transformers' resize_token_embeddings: _init_added_embeddings_weights_with_mean, for both
    "transformers": NewRows(1e-9, own_head=True),
    # swapUniba/LLaVA-NDiNO convert_llava_weights.py: both from the token table's distribution
    "ndino": NewRows(1e-5, own_head=False),
}


def grown(
    leaves: Mapping[str, Leaf], rows: int, replaced: int | None, seed: int, how: NewRows
) -> dict[str, Leaf]:
    """The language leaves with token tables of `rows` rows.

    Args:
        leaves: path -> leaf of the language part.
        rows: rows of the new tables, at least as many as there are.
        replaced: a row that gets new values although the old table has it: the image token in a
            padding row.
        seed: of the new rows.
        how: a value of NEW_ROWS.
    """

    def grow(path: str, leaf: Leaf) -> Leaf:
        like = leaf if how.own_head else leaves[TABLES[0]]
        table = partial(_grown_table, path, leaf, like, rows, replaced, seed, how.scale)
        return Leaf((rows, *leaf.shape[1:]), leaf.dtype, table)

    return {path: grow(path, leaf) if path in TABLES else leaf for path, leaf in leaves.items()}


def _grown_table(
    path: str, leaf: Leaf, like: Leaf, rows: int, replaced: int | None, seed: int, scale: float
) -> np.ndarray:
    old = leaf.read()
    fresh = list(range(len(old), rows))
    if replaced is not None and replaced < len(old):
        fresh.append(replaced)
    table = np.empty((rows, *old.shape[1:]), old.dtype)
    table[: len(old)] = old
    if fresh:
        source = old if like is leaf else like.read()
        drawn = new_rows(source, len(fresh), scale, generator(path, seed))
        table[fresh] = drawn.astype(old.dtype)
    return table


def new_rows(
    old: Shaped[np.ndarray, "V D"], count: int, scale: float, random: np.random.Generator
) -> Float32[np.ndarray, "count D"]:
    """`count` rows from N(mean, scale * covariance) of the rows of `old`.

    Where that covariance is not positive definite in float32 (a column that is constant, say), all
    of them are the mean. Source, for both: transformers 5,
    `PreTrainedModel._init_added_embeddings_weights_with_mean`; the covariance is divided by V.
    """
    width = old.shape[1]
    blocks = [slice(i, i + BLOCK) for i in range(0, len(old), BLOCK)]
    total = sum(old[block].astype(np.float32).sum(0, dtype=np.float64) for block in blocks)
    mean = np.asarray(total / len(old), np.float32)
    covariance = np.zeros((width, width), np.float32)
    for block in blocks:
        centred = old[block].astype(np.float32) - mean
        covariance += centred.T @ centred
    covariance /= np.float32(len(old))
    try:
        factor = np.linalg.cholesky(np.float32(scale) * covariance)
    except np.linalg.LinAlgError:
        return np.tile(mean, (count, 1))
    return random.standard_normal((count, width), np.float32) @ factor.T + mean
