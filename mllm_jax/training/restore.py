"""The state that a stage begins with: its first one, or that of a checkpoint.

    weights, random numbers  -> trained parameters               -> devices, compute.parameters
                             -> frozen parameters  -> RUN/frozen -> devices, compute.compute
    checkpoint               -> trained parameters, moments, step

Frozen parameters reach the devices through `RUN/frozen` at every start, so a resumed run computes
with the numbers of an undisturbed one.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mllm_jax.checkpoints.frozen import FrozenParams
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.open_model import ModelSource
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.common.errors import require
from mllm_jax.config.stage import Config
from mllm_jax.training import run_folder, state
from mllm_jax.training.setup import TrainSetup, init_params, with_magnitudes

DRAWN_BYTES = 2**30  # of random frozen parameters that one program draws; a larger one is alone


class FirstParams(NamedTuple):
    """The parameters of a stage's first step, before anything is written."""

    trainable: dict[str, jax.Array]  # path -> where it belongs, in `compute.parameters`
    frozen: dict[str, Leaf]  # path -> as the source has it


def first_params(setup: TrainSetup, source: ModelSource | None, config: Config) -> FirstParams:
    """Pretrained weights, and random numbers where there are none or `init.fresh` asks for them.

    Random numbers are drawn in `compute.parameters`, also those that stay frozen.

    Raises:
        ConfigError: the source lacks parameters or has others, or `init.fresh` matches none.
    """
    shapes, trainable = setup.of_model, setup.trainable
    fresh = _fresh_paths(list(shapes), source, config)
    drawn = {path: leaf for path, leaf in trainable.items() if path in fresh}
    params = init_params(setup, drawn, config.seed) if drawn else {}
    if source is not None:
        stored = {path: x for path, x in shapes.items() if path not in fresh}
        params |= source.load(stored, config.init.fresh, only=trainable)
    return FirstParams(params, _frozen_leaves(setup, source, config))


def _frozen_leaves(
    setup: TrainSetup, source: ModelSource | None, config: Config
) -> dict[str, Leaf]:
    """The frozen parameters as lazy leaves; none is read yet, and no other process is needed."""
    shapes, frozen = setup.of_model, _frozen_paths(setup)
    fresh = _fresh_paths(list(shapes), source, config)
    leaves = _drawn(setup, [path for path in frozen if path in fresh], config)
    if source is not None and len(leaves) < len(frozen):
        rest = {path: x for path, x in shapes.items() if path not in fresh}
        stored = source.leaves(rest, config.init.fresh)
        leaves |= {path: stored[path] for path in frozen if path not in fresh}
    return leaves


def _frozen_paths(setup: TrainSetup) -> list[str]:
    return [path for path in setup.of_model if path in setup.abstract.frozen]


def _fresh_paths(paths: list[str], source: ModelSource | None, config: Config) -> set[str]:
    if source is None:
        return set(paths)
    pattern, init = config.init.fresh, config.init
    require(
        pattern is None or any(run_folder.is_fresh(init, path) for path in paths),
        f"init.fresh={pattern!r} matches no parameter path",
    )
    return run_folder.drawn_paths(config, paths, source.config.model)


def _drawn(setup: TrainSetup, paths: Sequence[str], config: Config) -> dict[str, Leaf]:
    """Frozen parameters that this process alone draws when they are read."""
    shapes, dtype = setup.params, np.dtype(config.compute.parameters)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    groups: list[dict[str, jax.ShapeDtypeStruct]] = [{}]
    for path in paths:
        leaf = jax.ShapeDtypeStruct(shapes[path].shape, dtype, sharding=here)
        if sum(x.size for x in [*groups[-1].values(), leaf]) * dtype.itemsize > DRAWN_BYTES:
            groups.append({})
        groups[-1][path] = leaf
    return {path: leaf for group in groups for path, leaf in _drawn_together(setup, group, config)}


def _drawn_together(
    setup: TrainSetup, group: dict[str, jax.ShapeDtypeStruct], config: Config
) -> Iterator[tuple[str, Leaf]]:
    """Leaves that one program draws, when the first of them is read; each is held until read."""
    drawn: dict[str, jax.Array] = {}

    def read(path: str) -> np.ndarray:
        if path not in drawn:
            drawn.update(init_params(setup, group, config.seed))
        return np.asarray(drawn.pop(path))

    for path, leaf in group.items():
        yield path, Leaf(leaf.shape, np.dtype(leaf.dtype), functools.partial(read, path))


def first_state(setup: TrainSetup, first: FirstParams, frozen: FrozenParams) -> state.TrainState:
    """Step 0; the frozen parameters are written on the way."""
    frozen.write(first.frozen)
    params = with_magnitudes(setup, first.trainable | frozen.load(setup.frozen))
    return _state(setup, params)


def _state(setup: TrainSetup, params: dict[str, Any]) -> state.TrainState:
    return state.create_state(params, setup.optimizer, setup.abstract, setup.shardings)


def restore_state(
    setup: TrainSetup,
    checkpoints: Checkpoints,
    frozen: FrozenParams,
    source: ModelSource | None,
    config: Config,
) -> state.TrainState:
    """The state as it was after the last checkpoint's step.

    Args:
        setup: from `make_setup`.
        checkpoints, frozen: of the run.
        source, config: what the run began with; `train.on_damage` says what to do with damage.
    """
    on_damage = config.train.on_damage
    last = checkpoints.verified(on_damage)
    require(
        last is not None,
        f"{checkpoints.folder}: no finished checkpoint to resume from; run without --resume",
    )
    assert last is not None
    folder = checkpoints.folder / str(last)
    frozen.resume(
        folder, _frozen_paths(setup), lambda: _frozen_leaves(setup, source, config), on_damage
    )
    moments = {state.STORED: setup.opt_state}
    trainable, moments, _ = checkpoints.restore(last, setup.trainable, moments)
    first = _state(setup, trainable | frozen.load(setup.frozen))
    number = jax.device_put(jax.numpy.asarray(last, jax.numpy.int32), setup.shardings.step)
    return first._replace(step=number, opt_state=moments[state.STORED])
