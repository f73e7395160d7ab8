"""What saving a checkpoint costs a run. Prints one JSON object.

    python tests/benchmarks/save_cost.py steps --out DIR [--width 2048] [--layers 12] [--rounds 5]
    python tests/benchmarks/save_cost.py frozen --out DIR [--width 4096] [--layers 12] [--rounds 5]

`steps`: step times with a save in the background and without one. The state is a chain of square
matrices, the step a pass through them and back, donated.

`frozen`: what frozen parameters cost. The model is square float32 matrices, frozen but for the last
one, held in bfloat16 by the devices. `in_each_save` puts that copy into every checkpoint, as
versions before 2026-12 did; `once` writes the float32 source to the run's folder at the start.

Seconds are medians; the file system is that of --out.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.checkpoints.frozen import FrozenParams, frozen_leaves
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints

STEPS_ALONE = 5  # before each save


def main() -> None:
    """Measures what the command line asks for and removes what it wrote."""
    parser = argparse.ArgumentParser(description="times the saves of checkpoints")
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    measure, width = MEASURES[options.measure]
    figures = measure(options.out, options.width or width, options.layers, options.rounds)
    shutil.rmtree(options.out)
    print(json.dumps(figures | {"load": round(os.getloadavg()[0], 1)}))


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed_save(
    checkpoints: Checkpoints, step: int, save: Callable[[], None], meanwhile: Callable[[], Any]
) -> tuple[float, float]:
    """Seconds that the call of `save` takes, and until checkpoint `step` is on the disk.

    `meanwhile` is called again and again until then.
    """
    start = time.perf_counter()
    blocked = timed(save)
    while checkpoints.latest() != step:
        meanwhile()
    return blocked, time.perf_counter() - start


# ------------------------------------------------------------------------------------------- steps


def measure_steps(out: Path, width: int, layers: int, rounds: int) -> dict[str, Any]:
    """Step times beside a save, and what the save itself takes."""
    keys = jax.random.split(jax.random.key(0), layers)
    state = {
        f"language/l{i}": jax.random.normal(k, (width, width)) / 50 for i, k in enumerate(keys)
    }
    x = jax.random.normal(jax.random.key(1), (512, width))
    compiled = jax.jit(update, donate_argnums=0)

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, x))

    step()  # compiles
    alone: list[float] = []
    beside: list[float] = []
    saves: list[tuple[float, float]] = []
    with Checkpoints(out, Keep(1)) as checkpoints:
        for number in range(1, rounds + 1):
            alone += [timed(step) for _ in range(STEPS_ALONE)]

            def save(number: int = number) -> None:
                checkpoints.save(number, state, {"mu": state}, {})

            saves.append(timed_save(checkpoints, number, save, lambda: beside.append(timed(step))))
    blocked, total = (statistics.median(column) for column in zip(*saves, strict=True))
    median_alone, median_beside = statistics.median(alone), statistics.median(beside)
    figures = {
        "gigabytes": 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9,
        "step_seconds": median_alone,
        "step_seconds_during_a_save": median_beside,
        "ratio": median_beside / median_alone,
        "save_blocks_seconds": blocked,
        "save_takes_seconds": total,
    }
    rounded = {name: round(value, 3) for name, value in figures.items()}
    return rounded | {"steps_beside": len(beside)}


def update(params: dict, x: jax.Array) -> dict:
    """One step of gradient descent."""
    gradients = jax.grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)


def loss(params: dict, x: jax.Array) -> jax.Array:
    """Of a pass through all layers."""
    for layer in params.values():
        x = jnp.tanh(x @ layer)
    return jnp.mean(x**2)


# ------------------------------------------------------------------------------------------ frozen


def measure_frozen(out: Path, width: int, layers: int, rounds: int) -> dict[str, Any]:
    """A save with frozen parameters in it and without, and writing them once at the start."""
    shape, dtype = (width, width), np.dtype(np.float32)

    def read(number: int) -> np.ndarray:
        return np.random.default_rng(number).standard_normal(shape, np.float32)

    leaves = {f"language/l{i}": Leaf(shape, dtype, lambda i=i: read(i)) for i in range(layers)}
    frozen = FrozenParams(out / "once")
    drawing = sum(timed(leaf.read) for leaf in leaves.values())
    writing = timed(lambda: frozen.write(leaves)) - drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    at_the_start = {
        "seconds": round(writing, 3),
        "megabytes": megabytes(out / "once" / "frozen"),
        "largest_parameter_megabytes": round(width**2 * 4 / 1e6, 1),
        "peak_resident_megabytes": round(peak, 1),
    }
    on_devices = {
        path: jnp.asarray(leaf.read()).astype(jnp.bfloat16)
        for path, leaf in frozen_leaves(out / "once").items()
    }
    trained = {"connector/kernel": jax.random.normal(jax.random.key(0), shape)}
    everything, none = {**trained, **on_devices}, FrozenParams(out / "each")
    return {
        "write_at_the_start": at_the_start,
        "in_each_save": measure_saves(out / "each", everything, trained, none, rounds),
        "once": measure_saves(out / "once", trained, trained, frozen, rounds),
    }


def measure_saves(
    out: Path, params: Any, trained: Any, frozen: FrozenParams, rounds: int
) -> dict[str, float]:
    """Seconds from the call until the checkpoint is on the disk, and its size."""
    totals = []
    with Checkpoints(out, Keep(1)) as checkpoints:
        for step in range(1, rounds + 1):

            def save(step: int = step) -> None:
                moments = {"mu": trained, "nu": trained}
                checkpoints.save(step, params, moments, {}, None, frozen.files)

            totals.append(timed_save(checkpoints, step, save, checkpoints.wait)[1])
        size = megabytes(checkpoints.folder / str(rounds))
    return {"seconds": round(statistics.median(totals), 3), "megabytes": size}


def megabytes(folder: Path) -> float:
    """Size of all its files."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return round(size / 1e6, 1)


MEASURES = {"steps": (measure_steps, 2048), "frozen": (measure_frozen, 4096)}  # default widths


if __name__ == "__main__":
    main()
