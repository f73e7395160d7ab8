"""How far parameters move: AdamW against optax and torch, rounding, what never gets a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.patterns import matches
from mllm_jax.config.stage import OptimizerConfig, PartConfig
from mllm_jax.training import optimizer
from mllm_jax.training.optimizer import AdamState, Gradient

SHAPES = {"connector/b": (7,), "language/a/kernel": (5, 3), "language/norm/scale": (3,)}


def random_params(seed, scale):
    rng = np.random.default_rng(seed)
    return {p: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()}


def gradient_of(grads: dict[str, Any], useful: bool = True) -> Gradient:
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(grads[path])) for path in sorted(grads)))
    return Gradient(grads, jnp.float32(1), norm, jnp.bool_(useful))


def updater(made: optimizer.Optimizer) -> Any:
    """(grads, opt_state, params, step) -> Updated, compiled."""
    return jax.jit(lambda grads, *rest: made.update(gradient_of(grads), *rest))


@pytest.mark.parametrize("clip", [0.7, None])
def test_equals_torch_adamw(clip):
    """Twenty steps with clipping (half of them over the norm), decay, two rates, a schedule.

    No constant is its default, so that every one of the config's must arrive.
    """
    torch = pytest.importorskip("torch")
    parts = {
        "connector": PartConfig("connector/.*", learning_rate=3e-2),
        "language": PartConfig("language/.*"),
    }
    config = OptimizerConfig(
        parts,
        learning_rate=1e-2,
        weight_decay=0.1,
        beta1=0.8,
        beta2=0.95,
        eps=1e-3,
        clip_norm=clip,
        warmup_ratio=0.2,
        floor=0.33,
    )
    params = random_params(0, 1.0)
    made = optimizer.make_optimizer(config, 20, params)
    assert set(made.rates) == {"connector", "language"}
    moments = made.init(params)
    theirs = {p: torch.nn.Parameter(torch.tensor(np.asarray(x))) for p, x in params.items()}
    groups = [
        {"params": [theirs["connector/b"]], "lr": 3e-2, "weight_decay": 0.1},
        {"params": [theirs["language/a/kernel"]], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [theirs["language/norm/scale"]], "lr": 1e-2, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3)
    bases = [group["lr"] for group in adamw.param_groups]
    factor = optimizer.make_schedule(config, 20, 1.0)
    update = updater(made)
    for step in range(20):
        grads = random_params(step + 1, 0.1 if step % 2 else 2.0)
        params, moments, _ = update(grads, moments, params, step)
        for path, grad in grads.items():
            theirs[path].grad = torch.tensor(np.asarray(grad))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        for group, base in zip(adamw.param_groups, bases, strict=True):
            group["lr"] = base * float(factor(step))
        adamw.step()
    for path, ours in params.items():
        np.testing.assert_allclose(ours, theirs[path].detach().numpy(), rtol=1e-6, atol=2e-6)


def optax_update(config: OptimizerConfig, made: optimizer.Optimizer, params: Any) -> Any:
    """(init, update) of the same AdamW as a chain of optax's transformations."""
    decayed = {path: not matches(config.no_decay, path, "no_decay") for path in params}
    chain = optax.chain(
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )

    def update(grads: Any, state: Any, params: Any, step: Any) -> Any:
        directions: Any
        directions, state = chain.update(grads, state, params)
        rates = {path: made.rates[path.split("/")[0]](step) for path in params}
        changes = {path: -rates[path] * directions[path] for path in params}
        return {path: x + changes[path] for path, x in params.items()}, state, changes

    return chain.init(params), update


@pytest.mark.parametrize("clip", [0.7, None])
@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_equals_optax(clip, decay):
    """Ten steps, some of them clipped: parameters, moments, count and the norm of the change.

    Without clipping moments are equal to the bit, one operation at a time (a compiler joins
    products and sums in each program in its own way). With it, and for parameters, the last bit may
    differ: optax divides by the norm and by each moment's sum of weights, here factors are joined.
    """
    parts = {
        "connector": PartConfig("connector/.*", learning_rate=3e-2),
        "language": PartConfig("language/.*"),
    }
    config = OptimizerConfig(
        parts, learning_rate=1e-2, weight_decay=decay, clip_norm=clip, warmup_ratio=0.2
    )
    params = theirs = random_params(0, 1.0)
    made = optimizer.make_optimizer(config, 10, params)
    state = made.init(params)
    their_state, their_update = optax_update(config, made, params)
    for step in range(10):
        grads = random_params(step + 1, 0.1 if step % 2 else 2.0)
        with jax.disable_jit():
            params, state, norm = made.update(gradient_of(grads), state, params, step)
            theirs, their_state, changes = their_update(grads, their_state, theirs, step)
        adam: Any = their_state[1]
        for ours, other in zip(jax.tree.leaves(state), jax.tree.leaves(adam), strict=True):
            rtol, atol = (1e-6, 1e-9) if clip else (0, 0)
            np.testing.assert_allclose(ours, other, rtol=rtol, atol=atol)
        for path, x in params.items():
            np.testing.assert_allclose(x, theirs[path], rtol=3e-7, atol=1e-7)
        np.testing.assert_allclose(norm, optax.tree.norm(changes), rtol=1e-6)


def moved(params: Any, grads: Any, state: AdamState | None = None, **settings: Any) -> Any:
    """What one step at a constant rate makes of parameters."""
    config = OptimizerConfig(
        {"all": PartConfig(".*")}, warmup_ratio=0.0, schedule="constant", **settings
    )
    made = optimizer.make_optimizer(config, 10, params)
    return made.update(gradient_of(grads), state or made.init(params), params, 0)


def test_bfloat16_parameters_keep_float32_moments_and_round_once():
    params = {"connector/b": jnp.ones((4,), jnp.bfloat16)}
    after = moved(params, {"connector/b": jnp.ones((4,))}, learning_rate=0.3)
    floats = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert len(floats) == 2
    assert all(x.dtype == jnp.float32 for x in floats)
    assert after.trainable["connector/b"].dtype == jnp.bfloat16
    # Adam's first step goes as far as the rate: 0.7 is between two bfloat16 numbers
    assert (after.trainable["connector/b"] == jnp.bfloat16(0.7)).all()
    np.testing.assert_allclose(after.norm, 0.6, rtol=1e-5)  # as it was before it was rounded


def test_a_change_is_added_before_it_is_rounded():
    """1 + 2^-8 is half-way to the next bfloat16: what a change has beside that decides."""
    params, grads = {"a/b": jnp.ones(1, jnp.bfloat16)}, {"a/b": -jnp.ones(1)}
    one = moved(params, grads, learning_rate=2.0**-8 - 2.0**-17)
    more = moved(params, grads, learning_rate=2.0**-8 + 2.0**-17)
    assert one.trainable["a/b"] == 1
    assert more.trainable["a/b"] == 1 + 2.0**-7


TOWER = {
    "vision/layers/kernel": (3, 2),
    "vision/post_norm/scale": (2,),
    "language/head/kernel": (4, 2),
}
USED = {"vision/layers/kernel": 2, "vision/post_norm/scale": 0}  # of three layers; nothing of it


def test_what_never_gets_a_gradient_stays_and_has_no_moments():
    """As torch leaves a parameter whose grad is None: no decay, no state; the rest moves."""
    fresh = {path: jnp.ones(shape) for path, shape in TOWER.items()}
    config = OptimizerConfig(
        {"all": PartConfig(".*")}, learning_rate=1e-2, weight_decay=0.5, warmup_ratio=0.0
    )
    made = optimizer.make_optimizer(config, 10, fresh, USED)
    moments, params = made.init(fresh), fresh
    shapes = {path: x.shape for path, x in moments.mu.items()}
    assert shapes == {"vision/layers/kernel": (2, 2), "language/head/kernel": (4, 2)}
    for number in range(10):
        grads = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), made.used(params))
        params, moments, _ = made.update(gradient_of(grads), moments, params, number)
    assert (params["vision/layers/kernel"][2] == 1).all()
    assert (params["vision/post_norm/scale"] == 1).all()
    assert (params["vision/layers/kernel"][:2] < 0.95).all()
    assert (params["language/head/kernel"] < 0.95).all()
    still = made.update(gradient_of(grads, useful=False), moments, params, 10)
    jax.tree.map(np.testing.assert_array_equal, still[:2], (params, moments))


def test_a_stage_that_trains_what_no_row_uses_is_refused():
    """The connector alone, but rows without images."""
    config = OptimizerConfig({"connector": PartConfig("connector/.*")})
    with pytest.raises(ConfigError, match=r"no trained parameter is used.*connector/b.*image_slo"):
        optimizer.make_optimizer(config, 10, {"connector/b": jnp.zeros(2)}, {"connector/b": 0})
