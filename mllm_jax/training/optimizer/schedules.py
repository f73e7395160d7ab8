"""Learning-rate schedules: warm-up, then constant or a cosine."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float32, Num

from mllm_jax.config.stage import OptimizerConfig

Schedule = Callable[[Num[Array, ""] | int], Float32[Array, ""]]


def make_schedule(config: OptimizerConfig, steps: int, base: float) -> Schedule:
    """Learning rate of update `step` (0 is the first) out of `steps`.

        W = ceil(warmup_ratio * steps)
        step < W:              base * step / W
        constant:              base
        cosine:                base * (floor + (1 - floor) * 0.5 * (1 + cos(pi * t)))
                               with t = (step - W) / (steps - W)

    Source: transformers `get_cosine_schedule_with_warmup` (the first update has rate 0, the value
    after the last one is the floor); with a floor axolotl's `cosine_min_lr_ratio`
    (src/axolotl/utils/schedulers.py). Past the end the last value stays.
    """
    # the small subtraction: 0.1 * 30 is 3.0000000000000004 and means 3
    warmup = math.ceil(config.warmup_ratio * steps - 1e-9)
    rest = max(1, steps - warmup)

    def rate(step: Num[Array, ""] | int) -> Float32[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        factor = jnp.ones((), jnp.float32)
        if config.schedule == "cosine":
            done = jnp.clip((step - warmup) / rest, 0.0, 1.0)
            factor = config.floor + (1 - config.floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return base * jnp.where(step < warmup, step / max(1, warmup), factor)

    return rate
