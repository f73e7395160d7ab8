"""Config sections -> model, optimizer and the layout of the state.

What every command that takes steps begins with. Everything here is abstract until `init_params` or
a checkpoint puts numbers in, so an 8B stage is planned on a laptop.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mllm_jax.batch import Batch
from mllm_jax.common.errors import require
from mllm_jax.config.adapter import (
    KERNEL,
    KERNEL_SCALE,
    MAGNITUDE,
    AdapterConfig,
    is_scale,
    kernel_of,
)
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.pairs import PairsConfig
from mllm_jax.config.stage import ComputeConfig, OptimizerConfig
from mllm_jax.distributed import sharding
from mllm_jax.models import axes, lora, mllm
from mllm_jax.models.backends import backends
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.models.kernels.select import device_of
from mllm_jax.training import compiler, int8_base, optimizer, pairs, state, step

NO_PAIRS = PairsConfig()


class TrainSetup(NamedTuple):
    """A stage without numbers: what is trained, on what, and where each array will be."""

    model: mllm.MLLM
    mesh: Mesh
    optimizer: optimizer.Optimizer
    abstract: state.TrainState  # ShapeDtypeStructs
    shardings: state.TrainState  # NamedShardings

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """All parameters by path as devices hold them: ShapeDtypeStructs with shardings."""
        return _placed(self.abstract.params, self.shardings.params)

    @property
    def of_model(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Those that a model has: without the scales of what is held in int8."""
        return {path: leaf for path, leaf in self.params.items() if not is_scale(path)}

    @property
    def trainable(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Those that are trained, likewise."""
        return _placed(self.abstract.trainable, self.shardings.trainable)

    @property
    def frozen(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Those that are not, likewise; scales of what is held in int8 are among them."""
        return _placed(self.abstract.frozen, self.shardings.frozen)

    @property
    def opt_state(self) -> Any:
        """The optimizer's state, likewise."""
        return _placed(self.abstract.opt_state, self.shardings.opt_state)


def _placed(shapes: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def make_setup(
    model: ModelConfig,
    compute: ComputeConfig,
    config: OptimizerConfig,
    mesh: Mesh,
    steps: int,
    images: bool = True,
    adapter: AdapterConfig | None = None,
    segments: int | None = None,
    device: Device | None = None,
) -> TrainSetup:
    """The stage for these sections.

    Args:
        model: what the network is.
        compute: number formats, remat, attention.
        config: which parts are trained, and how; noise on token embeddings.
        mesh: the devices.
        steps: updates of the whole run, for the schedule.
        images: whether rows have image slots; without them nothing of tower and connector is used.
        adapter: low-rank updates of frozen matrices.
        segments: the most examples that a row holds; None: as many as fit.
        device: the chip that the mesh's devices stand for, if they are not of its kind.

    Raises:
        ConfigError: a parameter that no part claims or two do, nothing trained that is used, a
            dimension that does not divide over the mesh, an adapter where there can be none, or
            attention that the config names and that cannot compute one of the model's.
    """
    device = device or device_of(mesh.devices.flat[0])
    int8_base.check(model, adapter, mesh)
    if adapter is not None:
        base = mllm.abstract_params(mllm.build(model, compute, device, segments=segments))
        optimizer.check_adapter(base, config.parts, adapter)
        parts = optimizer.with_adapter(config.parts, adapter)
        config = dataclasses.replace(config, parts=parts)
    built = mllm.build(model, compute, device, adapter, config.neftune_alpha, segments)
    backends(built, 1, int(images), 1, mesh.shape["tensor"])  # refused here, not while it is traced
    params = mllm.abstract_params(built)
    trainable, _ = optimizer.split(state.param_dtypes(params, config.parts, compute), config.parts)
    require(
        compute.remat_vision is None or any(path.startswith("vision/") for path in trainable),
        f"compute.remat_vision={compute.remat_vision} has no effect: nothing of the image tower is "
        "trained; leave it out",
    )
    used = mllm.used_layers(model, trainable, images)
    made = optimizer.make_optimizer(config, steps, trainable, used)
    abstract = state.abstract_state(params, config.parts, compute, made)
    frozen = int8_base.held(abstract.frozen, adapter, axes.logical_axes(params))
    abstract = abstract._replace(frozen=frozen)
    places = state.state_shardings(mesh, abstract, axes.logical_axes(abstract.params))
    return TrainSetup(built, mesh, made, abstract, places)


def init_params(
    setup: TrainSetup, abstract: Mapping[str, jax.ShapeDtypeStruct], seed: int
) -> dict[str, jax.Array]:
    """Random parameters of the paths, dtypes and shardings of `abstract`, made in place.

    A parameter's numbers depend on the seed alone, not on which others are asked for.
    """

    def make(key: jax.Array) -> dict[str, jax.Array]:
        random = int8_base.with_int8(mllm.init(setup.model, key), abstract)
        return {path: random[path].astype(leaf.dtype) for path, leaf in abstract.items()}

    places = {path: leaf.sharding for path, leaf in abstract.items()}
    return jax.jit(make, out_shardings=places)(jax.random.key(seed))


def with_magnitudes(setup: TrainSetup, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Parameters of the first step: DoRA's magnitudes are those of the frozen matrices.

    Args:
        setup: from `make_setup`.
        params: all of them, in place; what is there for the magnitudes is replaced.
    """
    places = {p: x for p, x in setup.trainable.items() if p.endswith(f"/{MAGNITUDE}")}
    if not places:
        return dict(params)

    def make(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        first = lora.magnitudes(params, setup.model.compute.compute)
        return {p: x.astype(places[p].dtype) for p, x in first.items()}

    kernels = {kernel_of(path) for path in places}
    scales = {path.removesuffix(KERNEL) + KERNEL_SCALE for path in kernels}
    needed = {path: params[path] for path in {*places, *kernels, *scales} if path in params}
    shardings = {path: leaf.sharding for path, leaf in places.items()}
    return {**params, **jax.jit(make, out_shardings=shardings)(needed)}


def apply_of(model: mllm.MLLM, seed: int = 0) -> step.Apply:
    """The function for a step: (params, batch, update) -> (hidden [B, T, D], head [V, D]).

    Args:
        model: the network.
        seed: of the adapters' dropout and NEFTune's noise.
    """

    def apply(
        params: Any, batch: Batch, update: step.Update | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if update is None:
            return mllm.hidden(model, params, batch.inputs), mllm.head(params)
        key = jax.random.fold_in(jax.random.key(seed, impl=lora.GENERATOR), update.number)
        x = mllm.hidden(model, params, batch.inputs, key, rows=update.rows)
        return x, mllm.head(params)

    return apply


def compile_train_step(
    setup: TrainSetup,
    now: Any,
    batch: Batch,
    microbatches: int,
    n_streams: int,
    n_languages: int,
    seed: int = 0,
    terms: PairsConfig = NO_PAIRS,
) -> step.Compiled:
    """The stage's step, compiled for its mesh.

    Args:
        setup: from `make_setup`.
        now: the state, abstract or real.
        batch: with the rows of all processes, abstract or real.
        microbatches, n_streams, n_languages: see `step.make_train_step`.
        seed: of the adapters' dropout and NEFTune's noise.
        terms: what is added to the loss for pairs of records.
    """
    train_step = step.make_train_step(
        apply_of(setup.model, seed),
        setup.optimizer,
        microbatches,
        setup.model.compute.loss_chunk,
        n_streams,
        n_languages,
        setup.shardings,
        jax.numpy.dtype(setup.model.compute.reduce),
        pairs.Regularizer(terms.kl, terms.contrastive, terms.temperature) if terms.acts else None,
        jax.numpy.dtype(setup.model.compute.gradients),
    )
    rows = sharding.batch_sharding(setup.mesh)
    kind, choice = setup.mesh.devices.flat[0].device_kind, setup.model.compute.compiler_flags
    flags = compiler.flags_for(kind, setup.mesh.size, choice)
    return step.compile_step(train_step, setup.mesh, now, setup.shardings, batch, rows, flags)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """A process's rows of a batch -> the global batch on the mesh, rows over data and fsdp.

    The rows are those of `sharding.rows_here`, in that order.
    """
    placement, shares = sharding.batch_sharding(mesh), sharding.shares_here(mesh)

    def one(x: Any) -> jax.Array:
        size = x.shape[0] // len(shares)
        whole = (size * sharding.ways(mesh, "batch"), *x.shape[1:])

        def local_part(index: Any) -> Any:
            at = shares.index((index[0].start or 0) // size) * size
            return x[at : at + size]

        return jax.make_array_from_callback(whole, placement, local_part)

    return jax.tree.map(one, batch)
