"""One of several CPU processes that save or restore a checkpoint together. Started by a test.

    python tests/checkpoints/processes.py save|restore FOLDER NUMBER COUNT PORT

Two devices to a process; parameters lie over all of them, moments and frozen ones too, a scalar on
each.
"""

import os
import sys
from functools import partial
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.checkpoints.frozen import FrozenParams
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.distributed import sharding

NUMBERS = np.random.default_rng(0).integers(0, 2**32, (64, 48), np.uint32).view(np.float32)


def place(array: np.ndarray, mesh, spec: P) -> jax.Array:
    """A numpy array on the mesh; each process makes its own part."""
    where = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def read(number: int) -> np.ndarray:
    """What process 0 alone does with frozen parameters."""
    assert number == 0
    return NUMBERS


def main(verb: str, folder: Path, number: int, count: int, port: str) -> None:
    """Saves steps 4 and 8; or restores the last one, compares every bit, prints its number."""
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    mesh = sharding.make_mesh((1, -1, 1))
    spec = P("fsdp") if verb == "save" else P(None, "fsdp")
    params = {"language/embedding": place(NUMBERS, mesh, spec)}
    moments = {"mu": params, "count": place(np.asarray(7, np.int32), mesh, P())}
    frozen, source = FrozenParams(folder), place(NUMBERS.astype(ml_dtypes.bfloat16), mesh, spec)
    with jax.set_mesh(mesh), Checkpoints(folder, Keep(2)) as checkpoints:
        if verb == "save":
            leaf = Leaf(NUMBERS.shape, NUMBERS.dtype, partial(read, number))
            frozen.write({"vision/a": leaf})
            for step in (4, 8):
                checkpoints.save(step, params, moments, {"seed": step}, 1 / step, frozen.files)
            return
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, moments)
        )
        last = checkpoints.verified("previous")
        assert last is not None
        *found, extra = checkpoints.restore(last, *shapes)
        frozen.resume(folder / "checkpoints" / str(last), ["vision/a"], dict, "fail")
        shape = jax.ShapeDtypeStruct(source.shape, source.dtype, sharding=source.sharding)
        held = frozen.load({"vision/a": shape})["vision/a"]
    assert extra == {"seed": last}
    found, expected = jax.tree.leaves((found, held)), jax.tree.leaves((params, moments, source))
    for a, b in zip(found, expected, strict=True):
        assert a.sharding == b.sharding
        for mine, other in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert np.asarray(mine.data).tobytes() == np.asarray(other.data).tobytes()
    print(f"restored {last}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
