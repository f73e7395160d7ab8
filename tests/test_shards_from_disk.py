"""Weights straight into their shards: a process reads the bytes that its own devices need.

For every layout of the mesh, from a Hugging Face folder; and a run's checkpoint on another mesh.
"""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.checkpoints.hf import tensor_files
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.hf.writer import write_hf
from mllm_jax.checkpoints.leaves import Leaf, read_parts
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.config.model import LanguageConfig, ModelConfig
from mllm_jax.config.stage import FolderConfig
from mllm_jax.conversion import conversions
from mllm_jax.distributed import sharding
from mllm_jax.models.axes import logical_axes

# wide enough that an eighth of a row is more than a page; everything else is small
MODEL = ModelConfig(
    language=LanguageConfig(
        vocab=32, width=16384, mlp=16, layers=2, heads=8, kv_heads=4, head_dim=4
    )
)


def drawn() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = conversions.abstract(MODEL)
    return {path: random.standard_normal(x.shape, np.float32) for path, x in shapes.items()}


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of `drawn`."""
    out = tmp_path_factory.mktemp("wide")
    leaves = {path: Leaf(x.shape, x.dtype, lambda x=x: x) for path, x in drawn().items()}
    write_hf(out, FolderConfig(MODEL), leaves, data / "tokenizer", {})
    return out


def placed(mesh):
    """The abstract parameters with the shardings of the house's table."""
    shapes = conversions.abstract(MODEL)
    places = sharding.shardings(mesh, logical_axes(shapes))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "tensor": 4}], ids=str
)
def test_every_shard_has_its_numbers(folder: Path, make_mesh, axes: dict[str, int]):
    loaded = open_model(folder).load(placed(make_mesh(**axes)))
    for path, array in drawn().items():
        assert np.array_equal(loaded[path], array), path


class Counted:
    """Stands for `os.preadv` and counts the bytes."""

    def __init__(self):
        self.bytes, self._read = 0, os.preadv

    def __call__(self, file, into, begin):
        got = self._read(file, into, begin)
        self.bytes += got
        return got


@pytest.mark.parametrize(
    ("axes", "share"),
    [
        ({"fsdp": 8}, 1 / 4),
        ({"fsdp": 4, "tensor": 2}, 1 / 4),
        ({"data": 4, "tensor": 2}, 1),  # two neighbours hold the two halves
        ({"data": 2, "fsdp": 4}, 1 / 2),
    ],
    ids=str,
)
def test_two_of_eight_devices_read_their_own_bytes(
    folder: Path, make_mesh, monkeypatch, axes: dict[str, int], share: float
):
    """Of each matrix no byte beside those of the two shards; norms are whole on each device."""
    leaves = open_model(folder).leaves(conversions.abstract(MODEL))
    wanted = placed(make_mesh(**axes))
    for path, leaf in leaves.items():
        counted = Counted()
        with monkeypatch.context() as patch:
            patch.setattr(tensor_files.os, "preadv", counted)
            indices = wanted[path].sharding.devices_indices_map(leaf.shape)
            read_parts(leaf, list(indices.values())[:2])
        assert counted.bytes == (1 if "norm" in path else share) * 4 * leaf.size, path


def test_loading_reads_no_byte_twice(folder: Path, make_mesh, monkeypatch):
    source = open_model(folder)
    counted = Counted()
    monkeypatch.setattr(tensor_files.os, "preadv", counted)
    source.load(placed(make_mesh(data=2, fsdp=4)))
    assert counted.bytes == sum(x.nbytes for x in drawn().values())


@pytest.mark.parametrize("shape", [(6,), (5, 4000), (3, 4, 2000), (2, 3, 4, 5)])
def test_any_part_of_a_tensor_equals_the_part_of_the_whole(tmp_path: Path, shape: tuple[int, ...]):
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    leaf = Leaf(shape, array.dtype, lambda: array)
    tensor_files.write_tensors(tmp_path, {"a": leaf}, [("a", array)])
    tensor = stored_tensors(tmp_path)["a"]
    cuts = [[slice(0, n), slice(n // 2, n), slice(1, max(1, n // 2) + 1)] for n in shape]
    for index in itertools.product(*cuts):
        assert np.array_equal(tensor.read(index), array[index]), index


def test_a_checkpoint_goes_from_mesh_to_mesh_to_one_device(tmp_path: Path, make_mesh):
    """data 8 -> fsdp 4 x tensor 2 -> one device, parameters and moments, every bit."""
    expected = drawn()
    before: Any = expected
    meshes = [make_mesh(data=8), make_mesh(fsdp=4, tensor=2), make_mesh(devices=1)]
    for step, mesh in enumerate(meshes, 1):
        wanted = placed(mesh)
        shapes = (wanted, {"mu": wanted, "count": jax.ShapeDtypeStruct((), jnp.int32)})
        with jax.set_mesh(mesh), Checkpoints(tmp_path, Keep(1)) as checkpoints:
            if step > 1:
                assert checkpoints.verified("fail") == step - 1
                before, moments, _ = checkpoints.restore(step - 1, *shapes)
                assert int(moments["count"]) == step - 1
                for tree in (before, moments["mu"]):
                    for path, array in tree.items():
                        assert array.sharding == wanted[path].sharding
                        assert np.asarray(array).tobytes() == expected[path].tobytes(), path
            now = jax.device_put(before, jax.tree.map(lambda x: x.sharding, wanted))
            checkpoints.save(step, now, {"mu": now, "count": jnp.int32(step)}, {})
    assert math.prod(meshes[0].devices.shape) == 8
