"""Converts matrices to int8 as they are read: each process a layer at a time of what it needs."""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mllm_jax.checkpoints.leaves import Index, Leaf, size_of
from mllm_jax.common.int8 import BLOCK, SCALE, block_axis, quantised, scales_of
from mllm_jax.config.adapter import is_scale, kernel_of

THREADS = 4  # each holds a layer's matrix in float32, twice


def int8_leaves(stored: Mapping[str, Leaf], abstract: Mapping[str, Any]) -> dict[str, Leaf]:
    """The parameters with those matrices in int8 whose scales are in `abstract`.

    Args:
        stored: path -> lazy leaf, of a model; layers first in these matrices.
        abstract: path -> anything with `.shape`; blocks lie along the axis on which a matrix and
            its scales differ.
    """
    leaves = dict(stored)
    for path in filter(is_scale, abstract):
        kernel, shape = kernel_of(path), tuple(abstract[path].shape)
        base = stored[kernel]
        axis = block_axis(base.shape, shape)
        leaves[kernel] = _leaf(
            base.shape, np.dtype(np.int8), functools.partial(_values, base, axis)
        )
        leaves[path] = _leaf(shape, SCALE, functools.partial(_scales, base, axis))
    return leaves


def _leaf(shape: tuple[int, ...], dtype: np.dtype, part: Any) -> Leaf:
    whole = tuple(slice(0, n) for n in shape)
    return Leaf(shape, dtype, functools.partial(part, whole), part)


def _values(base: Leaf, axis: int, index: Index) -> np.ndarray:
    """The numbers at `index`, which has whole blocks."""
    out = np.empty(size_of(index), np.int8)
    _by_layer(out, base, index, lambda matrix: quantised(matrix, axis).values)
    return out


def _scales(base: Leaf, axis: int, index: Index) -> np.ndarray:
    """The scales at `index`."""
    out = np.empty(size_of(index), SCALE)
    numbers = slice(index[axis].start * BLOCK, index[axis].stop * BLOCK)
    inside = (*index[:axis], numbers, *index[axis + 1 :])
    _by_layer(out, base, inside, lambda matrix: scales_of(matrix, axis))
    return out


def _by_layer(
    out: np.ndarray, base: Leaf, index: Index, convert: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Fills `out` with what `convert` makes of each layer at `index`."""

    def fill(i: int) -> None:
        layer = slice(index[0].start + i, index[0].start + i + 1)
        out[i : i + 1] = convert(base.at((layer, *index[1:])))

    with ThreadPoolExecutor(THREADS) as pool:  # numpy works outside of Python's lock
        list(pool.map(fill, range(len(out))))
