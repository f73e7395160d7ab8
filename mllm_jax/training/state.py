"""Creates the TrainState, what a step changes and a checkpoint saves: shapes first, then arrays.

    abstract_state -> state_shardings -> parameters read or initialised in place -> create_state

Every array is made on its devices: parameters come in placed (read from disk with shardings, or
initialised by a jitted init with out_shardings), moments are made by a jitted init. No device, nor
the host, ever holds it all.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.common.trees import LISTED, differences, path_differences
from mllm_jax.config.stage import ComputeConfig, PartConfig
from mllm_jax.distributed import sharding
from mllm_jax.training.optimizer import AdamState, Optimizer, assign, formats, merge, split

# name of Adam's state in a checkpoint: its place in the optax chain (clipping, Adam, decay) that
# wrote the first ones
STORED = "1"


class TrainState(NamedTuple):
    """All that a step needs besides the batch; also holds abstract arrays, or shardings."""

    step: Any  # int32 scalar: updates done so far
    trainable: dict[str, Any]  # path -> array, in `compute.parameters`
    # path -> array, in `compute.compute`; no gradient, no moments. A copy to compute with: what is
    # kept on the disk has the number formats of its source (`checkpoints/frozen.py`)
    frozen: dict[str, Any]
    opt_state: AdamState  # of the used part of `trainable`

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, trainable and frozen together."""
        return merge(self.trainable, self.frozen)


def param_dtypes(
    params: Mapping[str, Any], parts: Mapping[str, PartConfig], compute: ComputeConfig
) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract parameters as they are held: trainable in `parameters`, frozen in `compute` dtype.

    Hand this to whatever reads or draws the parameters, so that they are cast leaf by leaf on the
    way in.
    """
    owner = assign(params, parts)
    dtypes = {True: jnp.dtype(compute.parameters), False: jnp.dtype(compute.compute)}
    return {
        path: jax.ShapeDtypeStruct(x.shape, dtypes[parts[owner[path]].train])
        for path, x in params.items()
    }


def abstract_state(
    params: Mapping[str, Any],
    parts: Mapping[str, PartConfig],
    compute: ComputeConfig,
    optimizer: Optimizer,
) -> TrainState:
    """Shapes and dtypes of the state for the whole model's abstract parameters."""
    trainable, frozen = split(param_dtypes(params, parts, compute), parts)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, trainable, frozen, jax.eval_shape(optimizer.init, trainable))


def state_shardings(
    mesh: Mesh, abstract: TrainState, axes: Mapping[str, tuple[str, ...]]
) -> TrainState:
    """Places of all leaves: parameters by logical axes, moments like them, scalars everywhere.

    Args:
        mesh: the mesh.
        abstract: from `abstract_state`.
        axes: path -> logical names of the dimensions, for the whole model.

    Raises:
        ConfigError: a dimension does not divide over its mesh axes.
        ValueError: axes of other parameters.
    """
    if unnamed := path_differences(abstract.params, axes):
        raise ValueError(f"the logical axes are those of other parameters: {'; '.join(unnamed)}")
    sharding.check_divides(mesh, axes, abstract.params)
    placed = sharding.shardings(mesh, axes)

    def like(params: dict[str, Any]) -> dict[str, Any]:
        return {path: placed[path] for path in params}

    whole = NamedSharding(mesh, P())
    adam = abstract.opt_state

    def of_moment(moment: dict[str, Any]) -> dict[str, Any]:
        return {path: formats.places(x, placed[path]) for path, x in moment.items()}

    opt_state = AdamState(whole, of_moment(adam.mu), of_moment(adam.nu), like(adam.lost))
    return TrainState(whole, like(abstract.trainable), like(abstract.frozen), opt_state)


def create_state(
    params: Mapping[str, Any], optimizer: Optimizer, abstract: TrainState, shardings: TrainState
) -> TrainState:
    """The state of step 0, from parameters that are already on their devices.

    Raises:
        ValueError: parameters that are missing, extra, misshapen, of another dtype or placed
            elsewhere, by path.
    """
    expected, places = abstract.params, shardings.params
    wrong = differences(expected, params) or [
        f"{path} is {leaf.dtype}{list(leaf.shape)} on {leaf.sharding}, "
        f"expected {want.dtype}{list(want.shape)} on {place}"
        for path, leaf in params.items()
        for want, place in [(expected[path], places[path])]
        if leaf.dtype != want.dtype or not leaf.sharding.is_equivalent_to(place, leaf.ndim)
    ]
    if wrong:
        raise ValueError(f"parameters that do not fit the state: {'; '.join(wrong[:LISTED])}")
    trainable = {path: params[path] for path in abstract.trainable}
    frozen = {path: params[path] for path in abstract.frozen}
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(trainable)
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)()
    return TrainState(step, trainable, frozen, opt_state)
