"""One of several CPU processes that save or restore a checkpoint together. Started by a test.

    python tests/checkpoints/processes.py save|restore FOLDER NUMBER COUNT PORT

Two devices to a process; parameters lie over all of them, moments too, a scalar on each.
"""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax import sharding
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.config import MeshConfig

NUMBERS = np.random.default_rng(0).integers(0, 2**32, (64, 48), np.uint32).view(np.float32)


def place(array: np.ndarray, mesh, spec: P) -> jax.Array:
    """A numpy array on the mesh; each process makes its own part."""
    where = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def main(verb: str, folder: Path, number: int, count: int, port: str) -> None:
    """Saves steps 4 and 8; or restores the last one, compares every bit, prints its number."""
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1))
    spec = P("fsdp") if verb == "save" else P(None, "fsdp")
    params = {"language": {"embedding": place(NUMBERS, mesh, spec)}}
    moments = {"mu": params, "count": place(np.asarray(7, np.int32), mesh, P())}
    with jax.set_mesh(mesh), Checkpoints(folder, Keep(2)) as checkpoints:
        if verb == "save":
            for step in (4, 8):
                checkpoints.save(step, params, moments, {"seed": step}, loss=1 / step)
            return
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, moments)
        )
        last = checkpoints.verified("previous")
        assert last is not None
        *found, extra = checkpoints.restore(last, *shapes)
    assert extra == {"seed": last}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves((params, moments)), strict=True):
        assert a.sharding == b.sharding
        for mine, other in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert np.asarray(mine.data).tobytes() == np.asarray(other.data).tobytes()
    print(f"restored {last}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
