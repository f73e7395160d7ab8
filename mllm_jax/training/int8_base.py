"""Lays out the frozen matrices of language layers in int8, for `adapter.base: int8`.

The parameters of a model, of its checkpoints and of `RUN/frozen` stay as they are: only the copy
that devices compute with is in int8, two arrays for each matrix (`config/adapter.py`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mllm_jax.common.errors import require
from mllm_jax.common.int8 import BLOCK, SCALE, block_axis, quantised
from mllm_jax.config.adapter import KERNEL, KERNEL_SCALE, AdapterConfig, is_scale, kernel_of
from mllm_jax.config.model import ModelConfig
from mllm_jax.distributed.sharding import mesh_axes, ways

DIVIDED = "embed"  # logical name of the dimension along which blocks lie: devices divide it


def check(model: ModelConfig, adapter: AdapterConfig | None, mesh: Mesh) -> None:
    """Raises ConfigError for a width that is not whole blocks on every device."""
    language = model.language
    if adapter is None or adapter.base != "int8" or language is None:
        return
    parts = ways(mesh, DIVIDED)
    axes = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in mesh_axes(DIVIDED, mesh))
    require(
        language.width % (BLOCK * parts) == 0,
        f"adapter.base=int8: model.language.width={language.width} must be a multiple of "
        f"{BLOCK * parts} (blocks of {BLOCK} x {axes}); choose a smaller mesh.fsdp or "
        "adapter.base=compute",
    )


def held(
    params: Mapping[str, Any], adapter: AdapterConfig | None, axes: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Abstract frozen parameters as devices hold them: matrices in int8, and their scales.

    Args:
        params: path -> `jax.ShapeDtypeStruct`.
        adapter: of the stage.
        axes: path -> logical names of the dimensions.
    """
    result = dict(params)
    for path in adapter.int8_kernels(params) if adapter is not None else ():
        shape, axis = params[path].shape, axes[path].index(DIVIDED)
        blocks = (*shape[:axis], shape[axis] // BLOCK, *shape[axis + 1 :])
        result[path] = jax.ShapeDtypeStruct(shape, jnp.int8)
        result[path.removesuffix(KERNEL) + KERNEL_SCALE] = jax.ShapeDtypeStruct(blocks, SCALE)
    return result


def with_int8(params: Mapping[str, Any], abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with those matrices in int8 that are so in `abstract`, whose scales are there.

    Args:
        params: path -> array, of a model.
        abstract: path -> `jax.ShapeDtypeStruct`, from `held`.
    """
    result = dict(params)
    for path in filter(is_scale, abstract):
        kernel = kernel_of(path)
        axis = block_axis(params[kernel].shape, abstract[path].shape)
        result[kernel], result[path] = quantised(params[kernel], axis)
    return result
