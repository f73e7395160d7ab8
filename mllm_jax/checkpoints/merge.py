"""Merges adapters into the matrices that they change, W + scale A B, where these are read.

A run with adapters is a model like any other: whoever reads its parameters reads merged ones.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mllm_jax.checkpoints.leaves import Index, Leaf, size_of
from mllm_jax.config.adapter import A, AdapterConfig, B, inputs_of, is_adapter, kernel_of, stacked


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
        leaves[kernel] = _Merged(kernel, stored[kernel], *matrices, adapter.scale).leaf
    return leaves


class _Merged:
    """One matrix with its adapter; the two narrow ones are read once."""

    def __init__(self, kernel: str, base: Leaf, a: Leaf, b: Leaf, scale: float):
        self._base, self._a, self._b, self._scale = base, a, b, scale
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

    def _part(self, index: Index, dtype: Any) -> np.ndarray:
        """What is at `index`, computed in float32 layer by layer."""
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
        out = np.empty(flat.shape, dtype)
        for layer in range(count):
            out[layer] = flat[layer].astype(np.float32) + self._scale * (a[layer] @ b[layer])
        return out.reshape(base.shape)
