"""`compute.gradients: bfloat16`: what is rounded, how often, and the update that follows.

The gradient of a microbatch is computed in float32 and rounded to the nearest bfloat16 number, and
so is each sum over microbatches. The update, its norm and its clipping take the rounded numbers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mllm_jax.batch import Batch
from mllm_jax.distributed import sharding
from mllm_jax.training import optimizer, step
from mllm_jax.training.optimizer.adamw import Updated
from tests.training import toy

RATE, DECAY, CLIP = 1e-2, 0.1, 0.05
BETA1, BETA2, EPS = 0.9, 0.99, 1e-8
ROWS = 16


@functools.cache
def setup() -> tuple[optimizer.Optimizer, Any]:
    return toy.make_setup(
        learning_rate=RATE,
        weight_decay=DECAY,
        no_decay=r".*/bias",
        clip_norm=CLIP,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPS,
        schedule="constant",
    )


def first_state() -> Any:
    return toy.create_state(*setup(), sharding.make_mesh(devices=jax.devices()[:1]))[0]


def kept(gradient: Any, state: Any, trainable: Any, number: Any) -> Updated:
    """An update that changes nothing; the gradient as it is stored is in the first moment."""
    leaves = {path: x.astype(jnp.float32) for path, x in gradient.leaves.items()}
    return Updated(trainable, state._replace(mu=leaves), gradient.norm)


@functools.cache
def compiled(held_in: str, microbatches: int = 1, rows: int = ROWS, update: Any = None) -> Any:
    """The toy model's step; with `update` instead of the optimizer's."""
    made, abstract = setup()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    before, places = toy.create_state(made, abstract, mesh)
    made = made if update is None else made._replace(update=update)
    counts, dtype = (microbatches, 5, 2, 3), jnp.dtype(held_in)
    train = step.make_train_step(toy.apply, made, *counts, places, held_in=dtype)
    placement = sharding.batch_sharding(mesh)
    return step.compile_step(train, mesh, before, places, toy.batch(rows), placement).call


def gradients(held_in: str, batch: Batch, microbatches: int = 1, state: Any = None) -> Any:
    """{path: gradient of the summed loss} as the optimizer is given it."""
    call = compiled(held_in, microbatches, len(batch.tokens), kept)
    after, _ = call(first_state() if state is None else state, batch)
    return jax.tree.map(np.asarray, after.opt_state.mu)


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16 number, by numpy."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_gradient_is_rounded_to_the_nearest():
    exact = gradients("float32", toy.batch())
    found = gradients("bfloat16", toy.batch())
    equal(found, jax.tree.map(rounded, exact))
    assert any((found[path] != x).any() for path, x in exact.items())


def test_sums_over_microbatches_are_rounded_at_each_addition():
    batch = toy.batch()
    found = gradients("bfloat16", batch, microbatches=2)
    parts = [
        jax.tree.map(rounded, gradients("float32", jax.tree.map(lambda x, n=n: x[n::2], batch)))
        for n in range(2)
    ]
    equal(found, jax.tree.map(lambda one, other: rounded(one + other), *parts))


def test_two_updates_are_those_by_hand():
    """AdamW in float64 from the stored gradients, clipped by their own norm."""
    state, call = first_state(), compiled("bfloat16")
    params: dict[str, Any] = {path: np.float64(x) for path, x in state.trainable.items()}
    first = {path: np.zeros(x.shape) for path, x in params.items()}
    second = {path: np.zeros(x.shape) for path, x in params.items()}
    for number in (1, 2):
        batch = toy.batch(seed=number)
        copy = jax.tree.map(jnp.array, state)
        stored = gradients("bfloat16", batch, state=copy)
        state, metrics = call(state, batch)
        mean = {path: np.float64(x) / batch.weights.sum() for path, x in stored.items()}
        norm = np.sqrt(sum(np.square(x).sum() for x in mean.values()))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
        assert norm > CLIP
        for path, x in mean.items():
            x = x * CLIP / norm
            first[path] = BETA1 * first[path] + (1 - BETA1) * x
            second[path] = BETA2 * second[path] + (1 - BETA2) * x**2
            root = np.sqrt(second[path] / (1 - BETA2**number))
            change = first[path] / (1 - BETA1**number) / (root + EPS)
            decay = 0.0 if path.endswith("/bias") else DECAY
            params[path] = params[path] - RATE * (change + decay * params[path])
    for path, x in params.items():
        np.testing.assert_allclose(state.trainable[path], x, rtol=2e-6, atol=2e-7, err_msg=path)
        np.testing.assert_allclose(state.opt_state.mu[path], first[path], rtol=2e-6, atol=1e-10)
