"""What frozen parameters cost a run: a save with them in the checkpoint, and without.

The model is square float32 matrices, frozen but for the last one, held in bfloat16 by the devices.
`in_each_save` puts that copy into every checkpoint, as versions before 2026-12 did; `once` writes
the float32 source to the run's folder at the start. Prints one JSON object; the file system is that
of --out, seconds are the median of the rounds.

    python tests/peer/frozen_cost.py --out DIR [--width 4096] [--layers 12] [--rounds 5]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.checkpoints.frozen import FrozenParams, frozen_leaves
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def saves(out: Path, params: Any, trained: Any, frozen: FrozenParams, rounds: int) -> dict:
    """Seconds from the call until the checkpoint is on the disk, and its bytes."""
    seconds = []
    with Checkpoints(out, Keep(1)) as checkpoints:
        for step in range(1, rounds + 1):
            begin = time.perf_counter()
            checkpoints.save(step, params, {"mu": trained, "nu": trained}, {}, None, frozen.files)
            checkpoints.wait()
            seconds.append(time.perf_counter() - begin)
        size = size_of(checkpoints.folder / str(rounds))
    return {"seconds": round(statistics.median(seconds), 3), "megabytes": round(size / 1e6, 1)}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--width", type=int, default=4096)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--rounds", type=int, default=5)
    options = p.parse_args()
    shape, dtype = (options.width, options.width), np.dtype(np.float32)

    def read(number: int) -> np.ndarray:
        return np.random.default_rng(number).standard_normal(shape, np.float32)

    leaves = {
        f"language/l{i}": Leaf(shape, dtype, lambda i=i: read(i)) for i in range(options.layers)
    }
    frozen, begin = FrozenParams(options.out / "once"), time.perf_counter()
    for leaf in leaves.values():
        leaf.read()
    drawing, begin = time.perf_counter() - begin, time.perf_counter()
    frozen.write(leaves)
    writing = time.perf_counter() - begin - drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    figures: dict[str, Any] = {
        "write_at_the_start": {
            "seconds": round(writing, 3),
            "megabytes": round(size_of(options.out / "once" / "frozen") / 1e6, 1),
            "largest_parameter_megabytes": round(options.width**2 * 4 / 1e6, 1),
            "peak_resident_megabytes": round(peak, 1),
        }
    }
    stored = frozen_leaves(options.out / "once")
    held = {path: jnp.asarray(leaf.read()).astype(jnp.bfloat16) for path, leaf in stored.items()}
    trained = {"connector": {"kernel": jax.random.normal(jax.random.key(0), shape)}}
    inside = {**trained, "language": {path[9:]: x for path, x in held.items()}}
    none, rounds = FrozenParams(options.out / "each"), options.rounds
    figures["in_each_save"] = saves(options.out / "each", inside, trained, none, rounds)
    figures["once"] = saves(options.out / "once", trained, trained, frozen, rounds)
    shutil.rmtree(options.out)
    print(json.dumps(figures | {"load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
