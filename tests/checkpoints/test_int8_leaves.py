"""Matrices that become int8 as they are read: every device's part is a part of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.checkpoints.int8_leaves import int8_leaves
from mllm_jax.checkpoints.leaves import Leaf, place
from mllm_jax.common import int8
from mllm_jax.distributed import sharding
from mllm_jax.models import axes


@pytest.mark.parametrize(
    ("path", "shape", "axis"),
    [
        ("language/layers/attention/q/kernel", (2, 256, 4, 8), 1),
        ("language/layers/attention/out/kernel", (2, 4, 8, 256), 3),
        ("language/layers/mlp/down/kernel", (3, 48, 256), 2),
    ],
)
def test_parts_are_those_of_the_whole(make_mesh, path, shape, axis):
    random = np.random.default_rng(0).standard_normal(shape, np.float32)
    asked = []

    def part(index):
        asked.append(index)
        return random[index]

    stored = {path: Leaf(shape, random.dtype, lambda: random, part)}
    scales = (*shape[:axis], shape[axis] // 64, *shape[axis + 1 :])
    abstract = {
        path: jax.ShapeDtypeStruct(shape, jnp.int8),
        f"{path}_scale": jax.ShapeDtypeStruct(scales, jnp.bfloat16),
    }
    places = sharding.shardings(make_mesh(fsdp=4, tensor=2), axes.logical_axes(abstract))
    leaves = int8_leaves(stored, abstract)
    expected = int8.quantised(random, axis)
    for name, whole in zip(abstract, expected, strict=True):
        leaf = abstract[name]
        placed = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name])
        np.testing.assert_array_equal(place(leaves[name], placed), whole)
        np.testing.assert_array_equal(leaves[name].read(), whole)
    assert all(index[0].stop - index[0].start == 1 for index in asked)  # a layer at a time
