"""What a save in the background costs the steps beside it: step times with and without one.

The state is a chain of square matrices, the step a pass through them and back, donated. Prints one
JSON object; the file system is that of --out.

    python tests/peer/save_cost.py --out DIR [--width 2048] [--layers 12] [--rounds 5]
"""

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints


def loss(params: dict, x: jax.Array) -> jax.Array:
    """Of a pass through all layers."""
    for layer in params["language"].values():
        x = jnp.tanh(x @ layer)
    return jnp.mean(x**2)


def update(params: dict, x: jax.Array) -> dict:
    """One step of gradient descent."""
    gradients = jax.grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--width", type=int, default=2048)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--rounds", type=int, default=5)
    options = p.parse_args()
    keys = jax.random.split(jax.random.key(0), options.layers)
    shape = (options.width, options.width)
    now = {"language": {f"l{i}": jax.random.normal(k, shape) / 50 for i, k in enumerate(keys)}}
    x = jax.random.normal(jax.random.key(1), (512, options.width))
    step = jax.jit(update, donate_argnums=0)
    now = jax.block_until_ready(step(now, x))
    alone, beside, blocked, whole = [], [], [], []

    def turn(times: list[float]) -> None:
        nonlocal now
        begin = time.perf_counter()
        now = jax.block_until_ready(step(now, x))
        times.append(time.perf_counter() - begin)

    with Checkpoints(options.out, Keep(1)) as checkpoints:
        for number in range(1, options.rounds + 1):
            for _ in range(5):
                turn(alone)
            begin = time.perf_counter()
            checkpoints.save(number, now, {"mu": now}, {})
            blocked.append(time.perf_counter() - begin)
            while checkpoints.latest() != number:
                turn(beside)
            whole.append(time.perf_counter() - begin)
    shutil.rmtree(options.out)
    size = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(now))
    figures = {
        "gigabytes": size / 1e9,
        "step_seconds": statistics.median(alone),
        "step_seconds_during_a_save": statistics.median(beside),
        "ratio": statistics.median(beside) / statistics.median(alone),
        "save_blocks_seconds": statistics.median(blocked),
        "save_takes_seconds": statistics.median(whole),
    }
    made = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(made | {"steps_beside": len(beside), "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
