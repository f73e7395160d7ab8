"""AdamW in one pass: gradients, moments and parameters are read once and written once a step.

Memory per trainable parameter, in bytes: float32 parameters 4 + moments 8 = 12, bfloat16 parameters
2 + moments 8 = 10; gradients are 4 more while a step runs. Moments are float32 in both cases: with
beta2 = 0.999 the second moment shrinks by at most 0.1 % a step, less than half a bfloat16 unit (0.2
to 0.4 %), so it could never fall. Updates are computed and added in float32, then rounded to the
parameter's dtype once. Mind that pure bfloat16 loses every change below 0.2 to 0.4 % of a weight:
at a learning rate of 2e-5 weights above 0.01 hardly move. It suits connectors and high rates;
float32 parameters are the default.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from mllm_jax.common.errors import require
from mllm_jax.common.patterns import matches
from mllm_jax.config.adapter import MAGNITUDE
from mllm_jax.config.stage import OptimizerConfig
from mllm_jax.training.optimizer.parts import Params, owner_of, shorten
from mllm_jax.training.optimizer.schedules import Schedule, make_schedule


class AdamState(NamedTuple):
    """AdamW's state of the used parameters; also holds abstract arrays, or shardings."""

    count: Any  # int32 scalar: updates that changed something
    mu: dict[str, Any]  # path -> running mean of the gradient
    nu: dict[str, Any]  # path -> running mean of its square


class Gradient(NamedTuple):
    """The gradient of the mean loss, as `Optimizer.update` takes it: leaves times share."""

    leaves: dict[str, Any]  # of the used part: the gradient of the summed loss
    share: Float32[Array, ""]  # one trained token's of the mean
    norm: Float32[Array, ""]  # of the mean's gradient, all leaves together
    useful: Bool[Array, ""]  # whether anything is to change at all


class Updated(NamedTuple):
    """What an update gives."""

    trainable: dict[str, Any]  # all of it; what is not used is as it was
    opt_state: AdamState
    norm: Float32[Array, ""]  # of the change, before it is rounded; as if the gradient were useful


class Optimizer(NamedTuple):
    """AdamW over the trainable parameters: pure functions of flat dicts {path: array}."""

    # trainable -> the part of it that gets gradients: unused leaves and layers left out
    used: Callable[[Params], dict[str, Any]]
    init: Callable[[Params], AdamState]  # trainable -> the state of step 0
    # gradient, state, trainable, step -> what they become
    update: Callable[[Gradient, AdamState, Params, Any], Updated]
    rates: dict[str, Schedule]  # part -> learning rate at a step, for the trained parts


class _Leaf(NamedTuple):
    """One parameter's share of the state."""

    param: Float[Array, "..."]
    mu: Float32[Array, "..."]
    nu: Float32[Array, "..."]


class _Scalars(NamedTuple):
    """What all numbers of a leaf are multiplied by in one update."""

    share: Float32[Array, ""]  # the gradient: mean and clipping
    rate: Float32[Array, ""]
    step: Float32[Array, ""]  # `mu`: the rate, by what `mu` has seen of all gradients
    root: Float32[Array, ""]  # the root of `nu`, likewise
    useful: Bool[Array, ""]


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    trainable: Params,
    layers: Mapping[str, int] | None = None,
) -> Optimizer:
    """AdamW: clip by global norm, Adam, add weight_decay x parameter, times -rate of the part.

    As torch.optim.AdamW after clip_grad_norm_: the decay is multiplied by the learning rate and is
    not clipped. The norm is taken over all trainable gradients together. What never gets a gradient
    stays as it is, without decay and without moments, as in torch.

    Args:
        config: rates, betas, decay, parts.
        steps: updates of the whole run, for the schedule.
        trainable: the trainable parameters (arrays or abstract): their paths decide the part and
            the decay of each.
        layers: {path: leading layers that get gradients} of leaves of which not all do, 0 for none.

    Raises:
        ConfigError: nothing that is trained gets a gradient.
    """
    layers = layers or {}
    paths = [path for path in trainable if layers.get(path) != 0]
    require(
        len(paths) > 0,
        f"optimizer.parts: no trained parameter is used, so none gets a gradient: "
        f"{shorten(list(trainable))}; train another part, or give rows image slots "
        "(data.image_slots)",
    )
    owner = {path: owner_of(path, config.parts) for path in paths}
    rates = _rates(config, steps, set(owner.values()))
    decay = {path: _decay(config, path) for path in paths}

    def used(trainable: Params) -> dict[str, Any]:
        return {p: trainable[p][: layers[p]] if p in layers else trainable[p] for p in paths}

    def init(trainable: Params) -> AdamState:
        zeros = {path: jnp.zeros(x.shape, jnp.float32) for path, x in used(trainable).items()}
        return AdamState(jnp.zeros((), jnp.int32), zeros, dict(zeros))

    def update(gradient: Gradient, state: AdamState, trainable: Params, step: Any) -> Updated:
        count = state.count + 1
        scalars = {
            name: _scalars(config, gradient, count, rate(step)) for name, rate in rates.items()
        }
        moved, squares = {}, []
        for path, param in used(trainable).items():
            leaf = _Leaf(param, state.mu[path], state.nu[path])
            moved[path], square = _moved(
                config, decay[path], scalars[owner[path]], gradient.leaves[path], leaf
            )
            squares.append(square)
        after = AdamState(
            jnp.where(gradient.useful, count, state.count),
            {path: leaf.mu for path, leaf in moved.items()},
            {path: leaf.nu for path, leaf in moved.items()},
        )
        params = {path: leaf.param for path, leaf in moved.items()}
        return Updated(_replaced(trainable, params), after, jnp.sqrt(sum(squares)))

    return Optimizer(used, init, update, rates)


def _rates(config: OptimizerConfig, steps: int, trained: set[str]) -> dict[str, Schedule]:
    """Part -> its learning rate at a step, of the trained parts that own a used parameter."""
    return {
        name: make_schedule(
            config,
            steps,
            config.learning_rate if part.learning_rate is None else part.learning_rate,
        )
        for name, part in config.parts.items()
        if part.train and name in trained
    }


def _decay(config: OptimizerConfig, path: str) -> float:
    """The weight decay of a parameter."""
    if matches(config.no_decay, path, "optimizer.no_decay"):
        return 0.0
    if path.endswith(f"/{MAGNITUDE}"):  # it begins as the frozen matrix is, not at 0
        return 0.0
    return config.weight_decay


def _scalars(config: OptimizerConfig, gradient: Gradient, count: Array, rate: Array) -> _Scalars:
    share = gradient.share
    if (limit := config.clip_norm) is not None:
        share = share * jnp.where(gradient.norm < limit, 1.0, limit / gradient.norm)
    # the weights of all gradients so far in a moment that began with zeros: 1 in the long run
    first, second = 1 - config.beta1**count, 1 - config.beta2**count
    return _Scalars(share, rate, rate / first, 1 / jnp.sqrt(second), gradient.useful)


def _moved(
    config: OptimizerConfig, decay: float, scalars: _Scalars, gradient: Array, leaf: _Leaf
) -> tuple[_Leaf, Float32[Array, ""]]:
    """One leaf after the update, and the sum of the squares of its change.

    Written for the compiler: factors are joined first, since a quotient that is used twice is
    written to memory; and a choice is one between two results, since choosing between a change and
    0 keeps an array of zeros.
    """
    gradient = gradient.astype(jnp.float32) * scalars.share
    mu = (1 - config.beta1) * gradient + config.beta1 * leaf.mu
    nu = (1 - config.beta2) * jnp.square(gradient) + config.beta2 * leaf.nu
    mu, nu = (jnp.where(scalars.useful, new, old) for new, old in ((mu, leaf.mu), (nu, leaf.nu)))
    mu, nu = _written((mu, nu))
    change = scalars.step * mu / (jnp.sqrt(nu) * scalars.root + config.eps)
    param = leaf.param.astype(jnp.float32)
    if decay:
        change = change + scalars.rate * decay * param
    square = jnp.sum(jnp.square(change))
    # added in float32 and rounded to the parameter's dtype once
    after = (param - change).astype(leaf.param.dtype)
    useful = _after(scalars.useful, square)
    return _Leaf(jnp.where(useful, after, leaf.param), mu, nu), square


# XLA's programs for CPUs give one result a loop, and their arrays are overwritten where they are. A
# loop that still needs the old numbers makes the compiler copy them first, so the order is given:
# moments, then the norm of the change, then parameters. Elsewhere one loop gives all results.


def _written(moments: Any) -> Any:
    """On CPUs: moments that are written before anything else is computed from them."""
    return jax.lax.platform_dependent(moments, cpu=jax.lax.optimization_barrier, default=tuple)


def _after(useful: Bool[Array, ""], square: Float32[Array, ""]) -> Bool[Array, ""]:
    """On CPUs: `useful`, but not known before `square` is."""
    return jax.lax.platform_dependent(
        useful, square, cpu=lambda useful, square: useful & jnp.isfinite(square), default=_first
    )


def _first(x: Array, _: Array) -> Array:
    return x


def _replaced(trainable: Params, params: Params) -> dict[str, Any]:
    """`trainable` with these parameters, of some of which only the first layers are there."""

    def one(path: str, x: Any) -> Any:
        new = params.get(path, x)
        return new if new.shape == x.shape else x.at[: len(new)].set(new)

    return {path: one(path, x) for path, x in trainable.items()}
