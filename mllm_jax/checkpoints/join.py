"""What `convert join` adds to two backbones: a fresh connector, and new rows of token tables.

Seeds: every parameter draws from its own generator, seeded by (seed, crc32 of its path), so that no
draw depends on the order in which parameters are written.
"""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

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


def grown(
    leaves: Mapping[str, Leaf], rows: int, drawn_anew: int | None, seed: int
) -> dict[str, Leaf]:
    """The language leaves with token tables of `rows` rows.

    Args:
        leaves: path -> leaf of the language part.
        rows: rows of the new tables, at least as many as there are.
        drawn_anew: a row that gets new values although the old table has it: the image token in a
            padding row.
        seed: of the new rows.
    """

    def grow(path: str, leaf: Leaf) -> Leaf:
        shape = (rows, *leaf.shape[1:])
        return Leaf(shape, leaf.dtype, partial(_grown_table, path, leaf, rows, drawn_anew, seed))

    return {path: grow(path, leaf) if path in TABLES else leaf for path, leaf in leaves.items()}


def _grown_table(path: str, leaf: Leaf, rows: int, drawn_anew: int | None, seed: int) -> np.ndarray:
    old = leaf.read()
    fresh = list(range(len(old), rows))
    if drawn_anew is not None and drawn_anew < len(old):
        fresh.append(drawn_anew)
    table = np.empty((rows, *old.shape[1:]), old.dtype)
    table[: len(old)] = old
    table[fresh] = new_rows(old, len(fresh), generator(path, seed)).astype(old.dtype)
    return table


def new_rows(old: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` rows from N(mean, covariance) of the rows of `old`, float32.

    With X the centred old rows [V, D] and z ~ N(0, 1) of length V, z X / sqrt(V) has exactly the
    covariance X^T X / V: no D x D matrix, no factorisation, and a covariance without full rank is
    no special case.
    """
    blocks = range(0, len(old), BLOCK)
    mean = sum(
        old[i : i + BLOCK].astype(np.float32).sum(0, dtype=np.float64) for i in blocks
    ) / len(old)
    mean = np.asarray(mean, np.float32)
    rows = np.zeros((count, *old.shape[1:]), np.float32)
    for i in blocks:
        centred = old[i : i + BLOCK].astype(np.float32) - mean
        rows += random.standard_normal((count, len(centred)), np.float32) @ centred
    return rows / np.float32(np.sqrt(len(old))) + mean
