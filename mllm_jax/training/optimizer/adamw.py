"""AdamW in one pass: gradients, moments and parameters are read once and written once a step.

Memory per trainable parameter, in bytes, and what a step adds for gradients:

    parameters   float32 4, bfloat16 2, with Kahan's compensation 4
    moments      float32 8, bfloat16 4, 8 bits 2.03
    gradients    float32 4, bfloat16 2

Everything is computed in float32 and rounded once. Mind that bfloat16 parameters rounded to the
nearest lose every change below 0.2 to 0.4 % of a weight: at a learning rate of 2e-5 weights above
0.01 hardly move. That suits connectors and high rates; for others see `rounding`.
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
from mllm_jax.training.optimizer import formats
from mllm_jax.training.optimizer.parts import Params, owner_of, shorten
from mllm_jax.training.optimizer.rounding import (
    Noise,
    compensated,
    noise_of,
    random_bits,
    stochastic,
)
from mllm_jax.training.optimizer.schedules import Schedule, make_schedule

LARGE = 2**20  # numbers of a layer from which on its leaf is updated layer by layer


class AdamState(NamedTuple):
    """AdamW's state of the used parameters; also holds abstract arrays, or shardings."""

    count: Any  # int32 scalar: updates that changed something
    mu: dict[str, Any]  # path -> running mean of the gradient, as `formats` stores it
    nu: dict[str, Any]  # path -> running mean of its square, likewise
    # path -> what rounding left out of a parameter so far; of bfloat16 ones, for Kahan's sum alone
    lost: dict[str, Any]


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
    """One parameter, or some of its layers, and its share of the state."""

    param: Float[Array, "..."]
    mu: Any
    nu: Any
    lost: Any  # None without


class _Scalars(NamedTuple):
    """What all numbers of a leaf are multiplied by in one update."""

    share: Float32[Array, ""]  # the gradient: mean and clipping
    rate: Float32[Array, ""]
    step: Float32[Array, ""]  # `mu`: the rate, by what `mu` has seen of all gradients
    root: Float32[Array, ""]  # the root of `nu`, likewise
    useful: Bool[Array, ""]


class _Rule(NamedTuple):
    """How one leaf moves in one update."""

    config: OptimizerConfig
    decay: float
    scalars: _Scalars
    noise: Noise


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
    require(
        config.moments != "int8"
        or any(formats.block_size(trainable[path].shape) for path in paths),
        f"optimizer.moments=int8 has no effect: the last dimension of no trained parameter divides "
        f"into blocks of {formats.SMALLEST} to {formats.BLOCK} numbers; leave it out",
    )
    owner = {path: owner_of(path, config.parts) for path in paths}
    rates = _rates(config, steps, set(owner.values()))
    decay = {path: _decay(config, path) for path in paths}

    def used(trainable: Params) -> dict[str, Any]:
        return {p: trainable[p][: layers[p]] if p in layers else trainable[p] for p in paths}

    def init(trainable: Params) -> AdamState:
        return _first_state(config, used(trainable))

    def update(gradient: Gradient, state: AdamState, trainable: Params, step: Any) -> Updated:
        count, step = state.count + 1, jnp.asarray(step, jnp.int32)
        now = {name: _scalars(config, gradient, count, rate(step)) for name, rate in rates.items()}
        moved, squares = {}, []
        for path, param in used(trainable).items():
            leaf = _Leaf(param, state.mu[path], state.nu[path], state.lost.get(path))
            rule = _Rule(config, decay[path], now[owner[path]], noise_of(path, step))
            work = _layer_by_layer if _is_large(path, leaf) else _moved
            moved[path], square = work(rule, gradient.leaves[path], leaf)
            squares.append(square)
        after = AdamState(
            jnp.where(gradient.useful, count, state.count),
            {path: leaf.mu for path, leaf in moved.items()},
            {path: leaf.nu for path, leaf in moved.items()},
            {path: leaf.lost for path, leaf in moved.items() if leaf.lost is not None},
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


def _first_state(config: OptimizerConfig, params: Params) -> AdamState:
    def moment(second: bool) -> dict[str, Any]:
        return {p: formats.zeros(config.moments, x.shape, second) for p, x in params.items()}

    lost = {}
    if config.rounding == "kahan":
        halves = {path: x for path, x in params.items() if x.dtype == jnp.bfloat16}
        lost = {path: jnp.zeros(x.shape, jnp.bfloat16) for path, x in halves.items()}
    return AdamState(jnp.zeros((), jnp.int32), moment(False), moment(True), lost)


def _moved(rule: _Rule, gradient: Array, leaf: _Leaf) -> tuple[_Leaf, Float32[Array, ""]]:
    """A leaf after the update, and the sum of the squares of its change.

    Written for the compiler: factors are joined first, since a quotient that is used twice is
    written to memory; and a choice is one between two results, since choosing between a change and
    0 keeps an array of zeros.
    """
    config, scalars = rule.config, rule.scalars
    gradient = gradient.astype(jnp.float32) * scalars.share
    mu = (1 - config.beta1) * gradient + config.beta1 * formats.dense(leaf.mu)
    nu = (1 - config.beta2) * jnp.square(gradient) + config.beta2 * formats.dense(leaf.nu)
    bits = random_bits(rule.noise, mu.shape, draw=0) if config.moments != "float32" else None
    stored = (
        formats.stored_like(leaf.mu, mu, bits),
        formats.stored_like(leaf.nu, nu, None if bits is None else bits >> 16),
    )
    stored = _written(_chosen(scalars.useful, stored, (leaf.mu, leaf.nu)))
    if config.moments == "float32":
        mu, nu = stored
    change = scalars.step * mu / (jnp.sqrt(nu) * scalars.root + config.eps)
    if rule.decay:
        change = change + scalars.rate * rule.decay * leaf.param.astype(jnp.float32)
    square = jnp.sum(jnp.square(change))
    after = _rounded(rule, leaf, change)
    before = leaf.param, leaf.lost
    param, lost = _chosen(_after(scalars.useful, square), after, before)
    return _Leaf(param, stored[0], stored[1], lost), square


def _rounded(rule: _Rule, leaf: _Leaf, change: Float32[Array, "..."]) -> tuple[Array, Any]:
    """The parameter less its change, in its own dtype, and what rounding left out."""
    param = leaf.param.astype(jnp.float32)
    if leaf.lost is not None:
        return compensated(param, -change, leaf.lost)
    if rule.config.rounding == "stochastic" and leaf.param.dtype == jnp.bfloat16:
        return stochastic(param - change, random_bits(rule.noise, param.shape, draw=1)), None
    # subtracted in float32 and rounded to the parameter's dtype once
    return (param - change).astype(leaf.param.dtype), None


def _chosen(useful: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(useful, new, old), new, old)


def _is_large(path: str, leaf: _Leaf) -> bool:
    """Whether a leaf is updated layer by layer, so that what is computed is never there whole."""
    layer = leaf.param.size // max(1, len(leaf.param)) if leaf.param.ndim else 0
    return "/layers/" in path and layer >= LARGE and isinstance(leaf.nu, formats.Blocks)


def _layer_by_layer(rule: _Rule, gradient: Array, leaf: _Leaf) -> tuple[_Leaf, Float32[Array, ""]]:
    """`_moved` of one layer after the other, in place: the same numbers.

    In 8 bits a block's largest number is known after all of its numbers, so a compiler may write
    them to memory in float32 in between.
    """

    def one(number: Array, carry: tuple[_Leaf, Array]) -> tuple[_Leaf, Array]:
        whole, total = carry
        at = lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1)  # noqa: E731
        layer_rule = rule._replace(noise=rule.noise._replace(first=number))
        layer, square = _moved(layer_rule, at(gradient), jax.tree.map(at, whole))
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, number, 0)  # noqa: E731
        return jax.tree.map(put, whole, layer), total + square

    return jax.lax.fori_loop(0, len(leaf.param), one, (leaf, jnp.zeros((), jnp.float32)))


# XLA's programs for CPUs give one result a loop, and their arrays are overwritten where they are. A
# loop that still needs the old numbers makes the compiler copy them first, so the order is given:
# moments, then the norm of the change, then parameters. Elsewhere one loop gives all results.


def _written(moments: Any) -> Any:
    """On CPUs: moments that are written before anything else is computed from them."""
    return jax.lax.platform_dependent(moments, cpu=jax.lax.optimization_barrier, default=tuple)


def _after(useful: Bool[Array, ""], square: Float32[Array, ""]) -> Bool[Array, ""]:
    """`useful`; on CPUs not known before `square` is, which is never below 0."""
    return jax.lax.platform_dependent(
        useful, square, cpu=lambda useful, square: useful & ~(square < 0), default=_first
    )


def _first(x: Array, _: Array) -> Array:
    return x


def _replaced(trainable: Params, params: Params) -> dict[str, Any]:
    """`trainable` with these parameters, of some of which only the first layers are there."""

    def one(path: str, x: Any) -> Any:
        new = params.get(path, x)
        return new if new.shape == x.shape else x.at[: len(new)].set(new)

    return {path: one(path, x) for path, x in trainable.items()}
