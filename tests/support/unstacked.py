"""Each language layer's parameters apart, as `decoding.unstack` gives them to generation."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllm_jax.distributed import sharding
from mllm_jax.models import axes, decoding, mllm


def shapes(model: mllm.MLLM) -> Any:
    """Path -> shape, without any array."""
    unstacked: dict[str, Any] = {}
    for path, x in mllm.abstract_params(model).items():
        if not path.startswith(decoding.LAYERS):
            unstacked[path] = x
            continue
        layer = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        name = path.removeprefix(decoding.LAYERS)
        unstacked |= {f"{decoding.LAYERS}{n}/{name}": layer for n in range(x.shape[0])}
    return unstacked


def shardings(model: mllm.MLLM, mesh: Mesh) -> dict[str, Any]:
    """Path -> where it is on the mesh."""
    stacked = sharding.shardings(mesh, axes.logical_axes(mllm.abstract_params(model)))
    unstacked: dict[str, Any] = {}
    for path in shapes(model):
        number, _, name = path.removeprefix(decoding.LAYERS).partition("/")
        if number.isdigit():
            home = stacked[decoding.LAYERS + name]
            unstacked[path] = NamedSharding(home.mesh, PartitionSpec(*home.spec[1:]))
        else:
            unstacked[path] = stacked[path]
    return unstacked
