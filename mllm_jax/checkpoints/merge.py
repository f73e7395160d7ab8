"""Merges adapters into the matrices that they change where these are read.

    W + scale A B                    LoRA
    m V / |V|, V = W + scale A B     DoRA; |V| and m of every output

A run with adapters is a model like any other: whoever reads its parameters reads merged ones.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mllm_jax.checkpoints.leaves import Index, Leaf, size_of
from mllm_jax.config.adapter import (
    MAGNITUDE,
    A,
    AdapterConfig,
    B,
    inputs_of,
    is_adapter,
    kernel_of,
    stacked,
)


def merged(stored: Mapping[str, Leaf], adapter: AdapterConfig) -> dict[str, Leaf]:
    """The parameters without adapters, these being in their matrices.

    A merged matrix has the wider number format of the two, so that no update is rounded away.

    Args:
        stored: path -> lazy leaf, adapters among them.
        adapter: their section.
    """
    kernels = {kernel_of(path): path.rpartition("/")[0] for path in stored if is_adapter(path)}
    leaves = {path: leaf for path, leaf in stored.items() if not is_adapter(path)}
    for kernel, beside in kernels.items():
        matrices = stored[f"{beside}/{A}"], stored[f"{beside}/{B}"]
        magnitude = stored[f"{beside}/{MAGNITUDE}"] if adapter.dora else None
        leaves[kernel] = _Merged(kernel, stored[kernel], *matrices, magnitude, adapter.scale).leaf
    return leaves


class _Merged:
    """One matrix with its adapter, which is read once."""

    def __init__(
        self, kernel: str, base: Leaf, a: Leaf, b: Leaf, magnitude: Leaf | None, scale: float
    ):
        self._base, self._a, self._b, self._scale = base, a, b, scale
        self._magnitude = magnitude
        self._layers, self._inputs = stacked(kernel), inputs_of(kernel)

    @property
    def leaf(self) -> Leaf:
        base = self._base
        dtype: Any = jnp.promote_types(base.dtype, self._a.dtype)
        whole = tuple(slice(0, n) for n in base.shape)
        return Leaf(
            base.shape,
            np.dtype(dtype),
            functools.partial(self._part, whole, dtype),
            functools.partial(self._part, dtype=dtype),
        )

    @functools.cached_property
    def _narrow(self) -> tuple[np.ndarray, np.ndarray]:
        return self._a.read().astype(np.float32), self._b.read().astype(np.float32)

    @functools.cached_property
    def _factors(self) -> np.ndarray:
        """DoRA's m / |V| of all layers and outputs, float32; 0 where all weights of one are 0."""
        assert self._magnitude is not None
        magnitude = self._magnitude.read().astype(np.float32)
        layers = self._base.shape[: self._layers]
        lengths = np.empty((math.prod(layers), math.prod(magnitude.shape[self._layers :])))
        for layer in range(len(lengths)):
            at = (*(slice(layer, layer + 1) for _ in layers),)
            rest = (slice(0, n) for n in self._base.shape[self._layers :])
            changed = next(self._changed((*at, *rest)))
            lengths[layer] = np.sqrt(np.sum(np.square(changed), axis=0, dtype=np.float64))
        lengths = lengths.reshape(magnitude.shape)
        factors = np.divide(magnitude, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return factors.astype(np.float32)

    def _part(self, index: Index, dtype: Any) -> np.ndarray:
        """What is at `index`, computed in float32 layer by layer."""
        layers, outputs = index[: self._layers], index[self._layers + self._inputs :]
        size = size_of(index)
        count, width = math.prod(size_of(layers)), math.prod(size_of(outputs))
        out = np.empty((count, math.prod(size) // max(count * width, 1), width), dtype)
        factors = None
        if self._magnitude is not None:
            factors = self._factors[(*layers, *outputs)].reshape(count, 1, width)
        for layer, changed in enumerate(self._changed(index)):
            out[layer] = changed if factors is None else factors[layer] * changed
        return out.reshape(size)

    def _changed(self, index: Index) -> Iterator[np.ndarray]:
        """W + scale A B of one layer after another [inputs, outputs], float32."""
        layers, rest = index[: self._layers], index[self._layers :]
        inputs, outputs = rest[: self._inputs], rest[self._inputs :]
        a, b = self._narrow
        a = a[(*layers, *inputs)]
        b = b[(*layers, slice(None), *outputs)]
        base = self._base.at(index)
        count = math.prod(size_of(layers))
        a = a.reshape(count, math.prod(size_of(inputs)), -1)
        b = b.reshape(count, -1, math.prod(size_of(outputs)))
        flat = base.reshape(count, a.shape[1], b.shape[2])
        for layer in range(count):
            yield flat[layer].astype(np.float32) + self._scale * (a[layer] @ b[layer])
