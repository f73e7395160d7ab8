"""AdamW and its schedules, and which parameters move: parts claim parameters by regex over paths.

Frozen means free: parameters are split into trainable and frozen ones before anything is
differentiated, so gradients, moments and master copies exist for the trainable ones alone. (AdamW
followed by a freeze mask keeps moments for all: 64 GB for 8 billion frozen parameters.)

Memory per trainable parameter, in bytes: float32 parameters 4 + moments 8 = 12, bfloat16 parameters
2 + moments 8 = 10; gradients are 4 more while a step runs. Moments are float32 in both cases: with
beta2 = 0.999 the second moment shrinks by at most 0.1 % a step, less than half a bfloat16 unit (0.2
to 0.4 %), so it could never fall. Updates are computed and added in float32, then rounded to the
parameter's dtype once. Mind that pure bfloat16 loses every change below 0.2 to 0.4 % of a weight:
at a learning rate of 2e-5 weights above 0.01 hardly move. It suits connectors and high rates;
float32 parameters are the default.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Num

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.patterns import matches
from mllm_jax.config.adapter import MAGNITUDE, NAMES, PART, AdapterConfig, is_adapter
from mllm_jax.config.stage import OptimizerConfig, PartConfig

SHOWN = 5  # paths named in a message
Schedule = Callable[[Num[Array, ""] | int], Float32[Array, ""]]
Params = Mapping[str, Any]  # path -> array


class Optimizer(NamedTuple):
    """AdamW over the trainable parameters, pure functions as in optax; they take the state's step.

    All of them work on flat dicts {path: array}.
    """

    # trainable -> the part of it that gets gradients: unused leaves and layers left out
    used: Callable[[Params], dict[str, Any]]
    # trainable -> opt_state of the used part: optax's, with a flat dict per moment
    init: Callable[[Params], Any]
    # grads, opt_state, used part of trainable, step -> updates in float32, opt_state
    update: Callable[[Params, Any, Params, Any], tuple[dict[str, Any], Any]]
    rates: dict[str, Schedule]  # part -> learning rate at a step, for the trained parts


# -------------------------------------------------------------------------------------------- parts


def assign(paths: Iterable[str], parts: Mapping[str, PartConfig]) -> dict[str, str]:
    """{path: name of the part that claims it}. A part's regex must match the whole path.

    Raises:
        ConfigError: paths that no part claims, paths that several claim, parts that claim nothing.
    """
    claims = {path: _claimants(path, parts) for path in paths}
    faults = []
    if unclaimed := [path for path, names in claims.items() if not names]:
        faults.append(f"no part claims {_shorten(unclaimed)}")
    if doubly := [
        f"{path} ({' and '.join(names)})" for path, names in claims.items() if len(names) > 1
    ]:
        faults.append(f"more than one part claims {_shorten(doubly)}")
    claimed = {name for names in claims.values() for name in names}
    if idle := [
        f"{name} (match: {part.match!r})" for name, part in parts.items() if name not in claimed
    ]:
        faults.append(f"claims nothing: {_shorten(idle)}")
    if faults:
        raise ConfigError(
            f"optimizer.parts: {'; '.join(faults)}; "
            "every parameter must be claimed by exactly one part"
        )
    return {path: names[0] for path, names in claims.items()}


def with_adapter(
    parts: Mapping[str, PartConfig], adapter: AdapterConfig | None
) -> dict[str, PartConfig]:
    """The parts, and one more that claims the parameters of adapters; no other part does."""
    if adapter is None:
        return dict(parts)
    pattern = f".*/({'|'.join(NAMES)})"
    return {**parts, PART: PartConfig(pattern, learning_rate=adapter.learning_rate)}


def check_adapter(
    paths: Iterable[str], parts: Mapping[str, PartConfig], adapter: AdapterConfig
) -> None:
    """Raises ConfigError for a matrix that is trained itself and has an adapter, or is in int8.

    Args:
        paths: of the parameters that have no adapter yet, of the whole model.
        parts, adapter: of the stage.
    """
    owner = assign(paths, parts)
    trained = [path for path in adapter.targets(owner) if parts[owner[path]].train]
    require(
        not trained,
        f"adapter.match={quoted(adapter.match)} matches {_shorten(trained)}, which optimizer.parts"
        f".{owner[trained[0]] if trained else ''} trains; freeze it by train: false, or do not "
        "match it",
    )
    trained = [path for path in adapter.int8_kernels(owner) if parts[owner[path]].train]
    require(
        not trained,
        f"adapter.base=int8 is for frozen matrices, but optimizer.parts"
        f".{owner[trained[0]] if trained else ''} trains {_shorten(trained)}; freeze it by train: "
        "false, or set adapter.base to compute",
    )


def split(params: Params, parts: Mapping[str, PartConfig]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters by path -> (trainable, frozen); together they hold every path once."""
    owner = assign(params, parts)
    trainable = {path: leaf for path, leaf in params.items() if parts[owner[path]].train}
    frozen = {path: leaf for path, leaf in params.items() if path not in trainable}
    return trainable, frozen


def merge(trainable: Params, frozen: Params) -> dict[str, Any]:
    """(trainable, frozen) -> all parameters. Raises ValueError if a path is in both."""
    if both := sorted(trainable.keys() & frozen.keys()):
        raise ValueError(f"trainable and frozen both hold {_shorten(both)}")
    return {**trainable, **frozen}


def _shorten(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more ({len(items)} in all)" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


# ---------------------------------------------------------------------------------------- schedules


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


# ---------------------------------------------------------------------------------------- optimizer


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
        f"{_shorten(list(trainable))}; train another part, or give rows image slots "
        "(data.image_slots)",
    )
    owner = {path: _owner(path, config.parts) for path in paths}
    rates = {
        name: make_schedule(
            config,
            steps,
            config.learning_rate if part.learning_rate is None else part.learning_rate,
        )
        for name, part in config.parts.items()
        if part.train and name in owner.values()
    }
    decayed = {
        path: not matches(config.no_decay, path, "optimizer.no_decay")
        and not path.endswith(f"/{MAGNITUDE}")  # it begins as the frozen matrix is, not at 0
        for path in paths
    }
    clip, decay = optax.identity(), optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    if config.weight_decay:
        decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
    chain = optax.chain(clip, adam, decay)

    def used(trainable: Params) -> dict[str, Any]:
        return {p: trainable[p][: layers[p]] if p in layers else trainable[p] for p in paths}

    def init(trainable: Params) -> Any:
        return chain.init(_float32(used(trainable)))

    def update(
        grads: Params, opt_state: Any, trainable: Params, step: Any
    ) -> tuple[dict[str, Any], Any]:
        directions: Any
        directions, opt_state = chain.update(_float32(grads), opt_state, _float32(trainable))
        now = {name: rate(step) for name, rate in rates.items()}
        return {path: -now[owner[path]] * d for path, d in directions.items()}, opt_state

    return Optimizer(used, init, update, rates)


def apply_updates(trainable: Params, updates: Params, useful: Any = True) -> dict[str, Any]:
    """parameter + update, added in float32 and rounded to the parameter's dtype once.

    Args:
        trainable: all of it.
        updates: of its used part (`Optimizer.used`); what has none stays as it is.
        useful: whether anything moves at all.
    """

    def moved(p: Any, u: Any) -> Any:
        # one choice between two sums: choosing between u and 0 first keeps an array of zeros
        return jnp.where(useful, (p.astype(jnp.float32) + u).astype(p.dtype), p)

    def one(path: str, p: Any) -> Any:
        if path not in updates:
            return p
        u = updates[path]
        return moved(p, u) if u.shape == p.shape else p.at[: len(u)].set(moved(p[: len(u)], u))

    return {path: one(path, p) for path, p in trainable.items()}


def _claimants(path: str, parts: Mapping[str, PartConfig]) -> list[str]:
    if is_adapter(path):
        return [PART] if PART in parts else []
    return [
        name
        for name, part in parts.items()
        if matches(part.match, path, f"optimizer.parts.{name}.match")
    ]


def _owner(path: str, parts: Mapping[str, PartConfig]) -> str:
    # not `assign`: only the trainable parameters are known here; frozen parts claim none of them
    names = _claimants(path, parts)
    if len(names) != 1 or not parts[names[0]].train:
        raise ValueError(
            f"{path}: claimed by {names}, expected exactly one trained part; "
            "split the parameters first"
        )
    return names[0]


def _float32(params: Params) -> dict[str, Any]:
    return {path: x.astype(jnp.float32) for path, x in params.items()}
