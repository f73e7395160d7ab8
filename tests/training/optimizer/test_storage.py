"""Every way to store moments and parameters: it learns, on any mesh, in any order, to the bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import ComputeConfig, OptimizerConfig, PartConfig
from mllm_jax.training import optimizer, state
from mllm_jax.training.optimizer import Gradient, adamw, formats

ALL = {"all": PartConfig(".*")}
SHAPES = {"language/layers/w": (3, 64, 128), "language/head/kernel": (32, 64), "language/b": (8,)}
AXES = {
    "language/layers/w": ("layers", "embed", "mlp"),
    "language/head/kernel": ("vocab", "embed"),
    "language/b": ("embed",),
}
FORMS = {
    "bfloat16": ("float32", {"moments": "bfloat16"}),
    "int8": ("float32", {"moments": "int8"}),
    "stochastic": ("bfloat16", {"moments": "int8", "rounding": "stochastic"}),
    "kahan": ("bfloat16", {"moments": "bfloat16", "rounding": "kahan"}),
}


def target() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def make(form: str, total: int = 10, **settings: Any) -> tuple[optimizer.Optimizer, Any, Any]:
    """(optimizer, abstract state, parameters of step 0)."""
    parameters: Any
    parameters, stored = FORMS.get(form, ("float32", {}))
    compute = ComputeConfig(compute="float32", parameters=parameters)
    config = OptimizerConfig(
        ALL, **{"learning_rate": 1e-3, "warmup_ratio": 0.0, **stored, **settings}
    )
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}
    trainable = state.param_dtypes(shapes, ALL, compute)
    made = optimizer.make_optimizer(config, total, trainable)
    first = {path: jnp.zeros(x.shape, x.dtype) for path, x in trainable.items()}
    return made, state.abstract_state(shapes, ALL, compute, made), first


def update(made: optimizer.Optimizer) -> Any:
    """A compiled step towards `target` with noisy gradients of a squared distance."""
    goal = target()

    def one(params: Any, opt_state: Any, step: Any) -> tuple[Any, Any]:
        key = jax.random.fold_in(jax.random.key(0), step)
        noise = {path: jax.random.normal(key, x.shape) for path, x in goal.items()}
        grads = {p: x.astype(jnp.float32) - goal[p] + noise[p] for p, x in params.items()}
        gradient = Gradient(grads, jnp.float32(1), jnp.float32(1), jnp.bool_(True))
        return made.update(gradient, opt_state, params, step)[:2]

    return jax.jit(one)


def run(form: str, steps: int, mesh: Any = None, **settings: Any) -> tuple[Any, Any]:
    made, abstract, params = make(form, **settings)
    opt_state, step = made.init(params), update(made)
    if mesh is not None:
        places = state.state_shardings(mesh, abstract, AXES)
        params, opt_state = jax.device_put(
            (params, opt_state), (places.trainable, places.opt_state)
        )
    for number in range(steps):
        params, opt_state = step(params, opt_state, jnp.int32(number))
    return jax.tree.map(np.asarray, (params, opt_state))


def equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("form", FORMS)
def test_learns_nearly_as_in_float32(form):
    """Distances from the target after 100 steps of noisy gradients, from 1."""

    def distance(form: str) -> float:
        params, _ = run(form, 100, total=100, learning_rate=1e-2)
        goal = target()
        squares = [np.square(np.float32(x) - goal[path]).sum() for path, x in params.items()]
        return float(np.sqrt(sum(squares) / sum(np.square(x).sum() for x in goal.values())))

    exact = distance("float32")
    assert exact < 0.9
    np.testing.assert_allclose(distance(form), exact, atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_eight_devices_equal_one_to_the_bit(make_mesh, form):
    equal(run(form, 3, make_mesh(fsdp=4, tensor=2)), run(form, 3))


@pytest.mark.parametrize("form", ["int8", "stochastic"])
def test_layer_by_layer_equals_whole(monkeypatch, form):
    """A compiler joins products and sums in its own way in each program.

    So the last bit of a number differs here and there, and once in a while the code next to it.
    """
    whole = run(form, 3)
    monkeypatch.setattr(adamw, "LARGE", 1)
    for one, other in zip(*map(jax.tree.leaves, (run(form, 3), whole)), strict=True):
        differs = ~np.isclose(np.float32(one), np.float32(other), rtol=1e-6, atol=1e-8)
        assert differs.mean() < 1e-3


@pytest.mark.parametrize("form", ["stochastic", "kahan"])
def test_resumed_equals_straight(tmp_path, form):
    """Two steps, a checkpoint, two more: as four."""
    made, _, params = make(form)
    opt_state, step = made.init(params), update(made)
    for number in range(2):
        params, opt_state = step(params, opt_state, jnp.int32(number))
    describe = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
    with Checkpoints(tmp_path, Keep(last=1)) as checkpoints:
        checkpoints.save(2, params, {state.STORED: opt_state}, {})
        checkpoints.wait()
        params, opt_state, _ = checkpoints.restore(
            2, describe(params), {state.STORED: describe(opt_state)}
        )
    opt_state = opt_state[state.STORED]
    for number in range(2, 4):
        params, opt_state = step(params, opt_state, jnp.int32(number))
    equal((params, opt_state), run(form, 4))


def test_a_second_moment_in_bfloat16_falls():
    """Its gradient is gone: 0.999 ^ 500 = 0.606 of it is left, on average over many numbers."""
    made, _, params = make("bfloat16", clip_norm=None)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.bfloat16), params)
    opt_state = made.init(params)._replace(nu=ones)
    one, grads = jnp.float32(1), jax.tree.map(jnp.zeros_like, params)
    zeros = Gradient(grads, one, one, jnp.bool_(True))
    step = jax.jit(lambda params, opt_state, number: made.update(zeros, opt_state, params, number))
    for number in range(500):
        params, opt_state, _ = step(params, opt_state, number)
    mean = np.mean(np.float32(opt_state.nu["language/layers/w"]))
    np.testing.assert_allclose(mean, 0.999**500, rtol=0.01)


def test_bytes_per_parameter():
    """Parameters and moments of a large matrix: 12, 8, 6.03, 4.03 and 8 bytes."""
    sizes = {}
    for form in ("float32", *FORMS):
        _, abstract, _ = make(form)
        of = lambda tree: tree.get("language/layers/w", ())  # noqa: E731
        adam = abstract.opt_state
        leaves = jax.tree.leaves([of(t) for t in (abstract.trainable, adam.mu, adam.nu, adam.lost)])
        sizes[form] = sum(x.size * x.dtype.itemsize for x in leaves) / (3 * 64 * 128)
    assert sizes == {"float32": 12, "bfloat16": 8, "int8": 6.0625, "stochastic": 4.0625, "kahan": 8}


def test_eight_bits_for_vectors_alone_are_refused():
    config = OptimizerConfig({"all": PartConfig(".*")}, moments="int8")
    with pytest.raises(ConfigError, match=r"optimizer\.moments=int8 has no effect"):
        optimizer.make_optimizer(config, 10, {"connector/b": jnp.zeros(8)})
    assert formats.SMALLEST > 8
