"""Lays out, estimates and compiles a stage under any setting of remat, rows and mesh.

For preflight. Nothing here holds numbers: parameters, moments and batch are shapes with shardings.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mllm_jax.batch import Batch
from mllm_jax.common import int8
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.versions import installed
from mllm_jax.config.adapter import is_adapter
from mllm_jax.config.model import LanguageConfig
from mllm_jax.config.stage import Config
from mllm_jax.distributed import sharding
from mllm_jax.models import axes, mllm
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.models.kernels.select import Selection, device_of
from mllm_jax.preflight import gpu_target, hlo, memory
from mllm_jax.preflight.hardware import Devices, Hardware
from mllm_jax.preflight.memory import Kept, Memory, Share
from mllm_jax.preflight.roofline import Split
from mllm_jax.preflight.settings import Setting
from mllm_jax.training import compiler, flops, int8_base, long_rows, optimizer, state, step
from mllm_jax.training.setup import TrainSetup, apply_of, compile_train_step, make_setup

STEPS = 1_000  # of a run whose length only its data tells: constants of the schedule, no shapes


class Program(NamedTuple):
    """A compiled step, or the compiler's error."""

    seconds: float
    memory: dict[str, int]  # bytes: arguments, temporary, outputs (not given back), code
    collectives: list[hlo.Collective]
    refused: str | None
    host: int = 0  # bytes of the host's memory, for one device
    flags: compiler.Flags = compiler.NO_FLAGS  # of XLA
    unknown_flags: tuple[str, ...] = ()  # that this compiler does not know
    peak: int | None = None  # bytes held at the same time, where that is less than `memory` (TPUs)

    @property
    def total(self) -> int:
        """Bytes that a device must have: libtpu accepts and refuses programs by their peak."""
        return sum(self.memory.values()) if self.peak is None else self.peak

    @property
    def sent(self) -> dict[str, dict[str, int]]:
        return hlo.summary(self.collectives)


class Plans:
    """One stage on one kind of hardware, under any setting."""

    def __init__(self, config: Config, hardware: Hardware, devices: Devices):
        self.config, self.hardware, self._devices = config, hardware, devices
        mesh = sharding.make_mesh(config.mesh.axes, devices.devices)
        split = Split(*(mesh.shape[axis] for axis in sharding.AXES))
        rows, microbatches = config.data.rows, config.train.microbatches
        self.configured = Setting(config.compute.remat, rows, microbatches, split)
        self.compiles = devices.compiles
        assert config.model.language is not None  # Config refuses a stage without one
        self.language: LanguageConfig = config.model.language

    @property
    def limit(self) -> int:
        """Bytes of memory of one device; of this machine's, its share."""
        if self.hardware.chip.memory is not None:
            return self.hardware.chip.memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // self.hardware.count

    @property
    def basis(self) -> str:
        """Where the numbers come from."""
        if not self.compiles:
            return (
                f"estimated by formula: no {self.hardware.chip.kind} is here to compile for, and "
                f"{self._devices.reason}"
            )
        if self._devices.compiler is not None:
            return f"compiled by {self._devices.compiler}"
        return f"compiled for this machine's {self.hardware.chip.platform} devices"

    @property
    def shape(self) -> dict[str, Any]:
        """The rest of what decides about size."""
        data, compute, adapter = self.config.data, self.config.compute, self.config.adapter
        return {
            "length": data.length,
            "image_slots": data.image_slots,
            "compute": compute.compute,
            "parameters": compute.parameters,
            "base": adapter.base if adapter is not None else "compute",
            "loss_chunk": compute.loss_chunk,
        }

    # ------------------------------------------------------------------------------------- layout

    @functools.cache  # noqa: B019  one object per call of the verb
    def setup(self, remat: str) -> TrainSetup:
        """The stage on the given mesh. Raises ConfigError for a dimension that does not divide."""
        config = self.config
        compute = dataclasses.replace(config.compute, remat=remat)
        steps = config.train.steps or STEPS
        mesh = sharding.make_mesh(config.mesh.axes, self._devices.devices)
        images = config.data.image_slots > 0
        sections = config.model, compute, config.optimizer
        adapter, segments = config.adapter, config.data.segments
        with self._devices.tracing():
            return make_setup(*sections, mesh, steps, images, adapter, segments, self._device)

    @functools.cache  # noqa: B019
    def laid_out(self, split: Split) -> TrainSetup:
        """The stage's state on another mesh: its shapes know no remat. Raises as `setup` does."""
        base = self.setup(self.configured.remat)
        mesh = sharding.make_mesh(split, self._devices.devices)
        names = axes.logical_axes(base.abstract.params)
        return base._replace(mesh=mesh, shardings=state.state_shardings(mesh, base.abstract, names))

    def check_rows(self, setting: Setting) -> None:
        """Raises ConfigError for rows that do not divide over mesh and microbatches."""
        mesh = self.laid_out(setting.split).mesh
        step.check_rows(mesh, setting.rows, setting.microbatches)
        long_rows.check(self.config, mesh, self._device)

    def possible(self, setting: Setting) -> bool:
        """Whether all dimensions divide."""
        try:
            self.check_rows(setting)
        except ConfigError:
            return False
        return True

    def batch(self, rows: int) -> Batch:
        """A batch's shapes, as the loader makes them."""
        data, vision = self.config.data, self.config.model.vision
        whole: Any = jax.ShapeDtypeStruct((rows, data.length), jnp.int32)
        weights: Any = jax.ShapeDtypeStruct((rows, data.length), jnp.float32)
        side = vision.image_size if vision is not None and self.config.model.patches else 1
        pixels: Any = jax.ShapeDtypeStruct((rows, data.image_slots, side, side, 3), jnp.uint8)
        partners: Any = None
        spans: Any = None
        if self.config.optimizer.pairs.acts:
            # how many pairs a row has room for depends on the records; here: of an image each
            most = max(1, data.image_slots // 2) if data.pack else 1
            partners, spans = whole, jax.ShapeDtypeStruct((rows, most, 2, 2), jnp.int32)
        of_text = whole, whole, weights, whole, whole, whole, whole, whole
        return Batch(*of_text, pixels, partners, spans)

    # ------------------------------------------------------------------------------------- memory

    def share(self, setting: Setting) -> Share:
        """What one device has of a step."""
        rows = setting.rows // setting.microbatches // (setting.split.data * setting.split.fsdp)
        data = self.config.data
        images = rows * data.image_slots // setting.split.context
        tensor, platform = setting.split.tensor, self.hardware.chip.platform
        length, parts = data.length // setting.split.context, setting.split.context
        return Share(rows, setting.microbatches, length, images, tensor, platform, parts)

    def state_bytes(self, split: Split) -> int:
        """Parameters and moments of one device: what no other option makes smaller."""
        there = self.laid_out(split)
        return memory.bytes_of(there.params) + memory.bytes_of(there.opt_state)

    def memory(self, setting: Setting) -> Memory:
        """Bytes of one device, by formula."""
        setup, share = self.laid_out(setting.split), self.share(setting)
        params, trained = setup.params, setup.abstract.trainable
        trainable = {path: leaf for path, leaf in params.items() if path in trained}
        frozen = {path: leaf for path, leaf in params.items() if path not in trained}
        rows = setting.rows // (setting.split.data * setting.split.fsdp)
        batch = self.batch(rows)
        in_all, pixels = (
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))
            for part in (batch, batch.pixels)
        )
        compute, model = setup.model.compute, self.config.model
        head = "language/embedding" if self.language.tied else "language/head/kernel"
        of_layers = (path for path in trained if path.startswith("language/layers/"))
        moves = not all(map(is_adapter, of_layers))  # adapters need no gradients of whole matrices
        divided = math.prod(setting.split) > setting.split.tensor
        summed = memory.head_gradient_bytes(self.language, share, head in trained and divided)
        kept = self._kept(setting.remat, share.tensor)
        if share.platform == "cpu":  # which has one memory
            kept = Kept(sum(kept), 0)
        return Memory(
            trainable=memory.bytes_of(trainable),
            frozen=memory.bytes_of(frozen),
            moments=memory.bytes_of(setup.opt_state),
            batch=in_all - pixels,
            images=pixels,
            copies=memory.copies_bytes(trainable, share, compute),
            gradients=memory.gradient_bytes(trainable, compute)
            * (2 if share.microbatches > 1 else 1),
            activations=share.rows * kept.device // share.parts,
            logits=memory.logits_bytes(self.language, share, compute.loss_chunk),
            head=memory.head_bytes(self.language, share, compute, head in trained, divided),
            layer=memory.layer_bytes(
                model, share, compute, moves, self.attention, self.config.adapter, summed
            ),
            host=share.rows * kept.host // share.parts,
        )

    def weight_bytes(self, paths: Collection[str] | None = None) -> int:
        """Bytes of the weights that stand in a product, or of some of them, as they are moved."""
        adapter, each = self.config.adapter, memory.width(self.config.compute)
        used = flops.matmul_parameters(self.config.model)
        of_int8 = set(adapter.int8_kernels(used)) if adapter is not None else set()
        chosen = used if paths is None else [path for path in used if path in paths]
        return round(sum(used[p] * (int8.BYTES if p in of_int8 else each) for p in chosen))

    @property
    def attention(self) -> Selection:
        """The backend as the stage names it, on this hardware."""
        data = self.config.data
        return Selection(self.config.compute.attention, self._device, data.segments)

    @property
    def _device(self) -> Device:
        chip, here = self.hardware.chip, device_of(self._devices.devices[0])
        if here.platform == chip.platform and here.capability is not None:
            return here
        return Device(chip.platform, chip.cores.capability if chip.cores is not None else None)

    @functools.cache  # noqa: B019
    def _kept(self, remat: str, tensor: int) -> Kept:
        """Bytes one row leaves for the backward pass, on one of `tensor` devices.

        A model with that part of the heads and units keeps what a device does. (The image tower is
        taken whole: its head width follows from its heads.)
        """
        whole, adapter = self.language, self.config.adapter
        parts = optimizer.with_adapter(self.config.optimizer.parts, adapter)
        language = dataclasses.replace(
            whole,
            heads=whole.heads // tensor,
            kv_heads=whole.kv_heads // tensor,
            mlp=whole.mlp // tensor,
        )
        model = dataclasses.replace(self.config.model, language=language)
        compute = dataclasses.replace(self.config.compute, remat=remat)
        segments = self.config.data.segments
        built = mllm.build(model, compute, self._device, adapter, segments=segments)
        held = state.param_dtypes(mllm.abstract_params(built), parts, compute)
        trainable, frozen = optimizer.split(held, parts)
        frozen = int8_base.held(frozen, adapter, axes.logical_axes(frozen))
        apply = apply_of(built)

        def pull(trainable: Any, frozen: Any, batch: Batch) -> Any:
            hidden = lambda moving: apply(optimizer.merge(moving, frozen), batch, None)[0]  # noqa: E731
            return jax.vjp(hidden, trainable)[1]

        with self._devices.tracing():
            return memory.kept_per_row(
                lambda rows: jax.make_jaxpr(pull)(trainable, frozen, self.batch(rows)).out_avals
            )

    # ------------------------------------------------------------------------------------ program

    @functools.cache  # noqa: B019
    def compiled(self, setting: Setting) -> Program:
        """The real train step, compiled for the hardware."""
        there = self.laid_out(setting.split)
        here = self.setup(setting.remat)
        setup = here._replace(mesh=there.mesh, shardings=there.shardings)
        batch, data = self.batch(setting.rows), self.config.data
        counts = setting.microbatches, len(data.streams), len(data.languages)
        try:
            terms = self.config.optimizer.pairs
            with self._devices.tracing():
                compiled = compile_train_step(setup, setup.abstract, batch, *counts, terms=terms)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Program(0.0, {}, [], str(error).splitlines()[0])
        sizes = compiled.call.memory_analysis()
        byte_counts = {
            "arguments": sizes.argument_size_in_bytes,
            "temporary": sizes.temp_size_in_bytes,
            "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
            "code": sizes.generated_code_size_in_bytes,
        }
        sent, host = hlo.collectives(compiled.call.as_text()), sizes.host_temp_size_in_bytes
        flags = compiled.flags, compiled.refused
        # elsewhere temporary memory is one allocation, whose size is what is needed
        peak = sizes.peak_memory_in_bytes if self.hardware.chip.platform == "tpu" else None
        return Program(compiled.seconds, byte_counts, sent, None, host, *flags, peak)


def versions() -> dict[str, str]:
    """Versions that decide about a compiled program."""
    return installed("mllm-jax", "jax", "jaxlib", "libtpu", *gpu_target.PACKAGES)
