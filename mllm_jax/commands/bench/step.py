"""How fast the real train step is, on synthetic rows; compile time apart.

tests/benchmarks/pytorch_baseline.py does the same work in PyTorch with the same sizes, stages and
JSON field names, so the two can be divided.

    MFU = useful FLOPs per step / (step seconds x chips x published bfloat16 rate)

The useful FLOPs are written out in training/flops.py: 6 N_matmul + 6 L d T per token that is
trained through (causal, input embedding not counted), frozen parts 2 or 4 as they are.
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mllm_jax.batch import Batch
from mllm_jax.commands.bench import trace
from mllm_jax.commands.bench.request import WARMUP
from mllm_jax.commands.bench.work import Work, image_placeholders, synthetic
from mllm_jax.common.errors import RunError, require
from mllm_jax.common.hardware import peak_rate
from mllm_jax.config.data import LIMITED, row_limit
from mllm_jax.distributed import sharding
from mllm_jax.models.backends import backends, verified
from mllm_jax.training import flops, long_rows, state
from mllm_jax.training.setup import (
    TrainSetup,
    compile_train_step,
    init_params,
    make_setup,
    shard_batch,
    with_magnitudes,
)
from mllm_jax.training.step import Compiled

GIB = 2**30


class Prepared(NamedTuple):
    """A step that is compiled, without numbers yet."""

    work: Work
    setup: TrainSetup
    batch: Batch
    compiled: Compiled
    attention_errors: dict[str, float]  # of the kernels, see `backends.verified`

    @property
    def memory(self) -> int:
        """Bytes that the program needs on a device, by the compiler."""
        sizes = self.compiled.call.memory_analysis()
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        return held - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes


class Times(NamedTuple):
    """Seconds of every timed step, and of what they computed the loss."""

    wall: list[float]
    cpu: list[float]  # of all threads
    loss: float

    @property
    def median(self) -> float:
        return sorted(self.wall)[len(self.wall) // 2]


def prepare(work: Work) -> Prepared:
    """Compiles the step.

    Raises:
        ConfigError: a batch that does not fit model or mesh.
    """
    index, _ = image_placeholders(work.model, work.images)
    require(
        work.length > len(index) + 1,
        f"--length {work.length}: too short for an image of {len(index)} tokens and text",
    )
    mesh = sharding.make_mesh(work.mesh.axes)
    parts = sharding.ways(mesh, "batch")
    turns = "" if work.microbatches == 1 else f" in {work.microbatches} microbatches"
    require(
        work.rows % (parts * work.microbatches) == 0,
        f"--batch {work.rows} does not divide over {parts} devices{turns}; give a multiple of "
        f"{parts * work.microbatches}",
    )
    batch = synthetic(work.model, work.rows, work.length, work.images)
    long_rows.check_rows(work.model, work.compute, work.length, batch.pixels.shape[1], mesh)
    setup = make_setup(
        *(work.model, work.compute, work.optimizer, mesh),
        steps=1_000,
        images=work.images,
        adapter=work.adapter,
        segments=work.segments or _limit(work),
    )
    errors = verified(setup.model, *_attention_shape(work, mesh))
    compiled = compile_train_step(setup, setup.abstract, batch, work.microbatches, 1, 1)
    return Prepared(work, setup, batch, compiled, errors)


def _limit(work: Work) -> int | None:
    """The examples that a row may hold where attention needs a limit, as in a stage."""
    return row_limit(work.length) if work.compute.attention in LIMITED else None


def measure(
    work: Work, steps: int, limit: int | None = None, profile: Path | None = None
) -> dict[str, Any]:
    """Compiles and times `steps` steps after WARMUP.

    The loss is fetched every step, as the PyTorch baseline does.

    Args:
        work: what is timed.
        steps: timed steps.
        limit: bytes of a device's memory, if the program is not to run where it needs more.
        profile: an empty folder that gets a trace of a few further steps.

    Raises:
        ConfigError: a batch that does not fit model or mesh.
        RunError: the program needs more than `limit`.
    """
    prepared = prepare(work)
    if limit is not None and prepared.memory > limit:
        raise RunError(
            f"needs {prepared.memory / GIB:.2f} of {limit / GIB:.2f} GiB by the compiler"
        )
    setup, placed = prepared.setup, shard_batch(prepared.batch, prepared.setup.mesh)
    first = with_magnitudes(setup, init_params(setup, setup.params, seed=0))
    now = state.create_state(first, setup.optimizer, setup.abstract, setup.shardings)
    del first
    now, _ = _steps(prepared.compiled, now, placed, WARMUP)
    now, times = _steps(prepared.compiled, now, placed, steps)
    result = report(prepared, times)
    if profile is not None:
        with trace.tracing(profile):
            _steps(prepared.compiled, now, placed, trace.STEPS)
        costs = trace.costliest(profile, prepared.compiled.call.as_text())
        result["costliest"] = [cost._asdict() for cost in costs]
    return result


def _steps(compiled: Compiled, now: Any, placed: Batch, count: int) -> tuple[Any, Times]:
    """Runs the step `count` times; a trace that is being made says where each begins and ends."""
    wall, cpu, loss = [], [], math.nan
    for n in range(count):
        start, used = time.perf_counter(), time.process_time()
        with jax.profiler.StepTraceAnnotation(trace.STEP, step_num=n):
            now, metrics = compiled.call(now, placed)
            loss = float(metrics["loss"])
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return now, Times(wall, cpu, loss)


def report(prepared: Prepared, times: Times) -> dict[str, Any]:
    """The figures of a run, field names as the PyTorch baseline's where both have them."""
    work, setup, seconds = prepared.work, prepared.setup, times.median
    device, compute = setup.mesh.devices.flat[0], setup.model.compute
    targets = int(np.count_nonzero(prepared.batch.weights))
    useful = flops.flops_per_step(
        *(work.model, setup.abstract.trainable, work.rows, work.length),
        images=work.rows * image_placeholders(work.model, work.images)[1],
        rank=0 if work.adapter is None else work.adapter.rank,
        targets=float(targets),
    )
    peak = peak_rate(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "jax": jax.__version__,
        "device": device.device_kind,
        "platform": device.platform,
        "devices": setup.mesh.size,
        "dtype": compute.compute,
        "parameter_dtype": compute.parameters,
        "remat": compute.remat,
        "attention": compute.attention,
        "attention_backends": backends(setup.model, *_attention_shape(work, setup.mesh)),
        "attention_errors": {name: round(x, 5) for name, x in prepared.attention_errors.items()},
        "batch": work.rows,
        "microbatches": work.microbatches,
        "length": work.length,
        "images": work.images,
        "median_step_seconds": round(seconds, 4),
        "step_seconds": [round(second, 4) for second in times.wall],
        "cpu_seconds": round(sum(times.cpu) / len(times.cpu), 4),
        "targets": targets,
        "tokens_per_second": round(work.rows * work.length / seconds, 1),
        "loss": round(times.loss, 4),
        "parameters": _count(setup.abstract.params),
        "trainable": _count(setup.abstract.trainable),
        "peak_gib": round(memory / GIB, 2) if memory else None,
        "program_gib": round(prepared.memory / GIB, 3),
        "compile_seconds": round(prepared.compiled.seconds, 2),
        "compiler_flags": dict(prepared.compiled.flags),
        "flops_per_step": useful,
        "teraflops_per_second": round(useful / seconds / 1e12, 4),
        "mfu": round(useful / seconds / (peak * setup.mesh.size), 4) if peak else None,
        "mfu_formula": "flops_per_step / (median_step_seconds * devices * published bf16 rate); "
        "flops_per_step = tokens * (6 N_matmul + 6 L d T) where trained through, 4 N frozen with "
        "gradient, 2 N frozen forward only; the head's N for `targets` alone",
    }


def _attention_shape(work: Work, mesh: Mesh) -> tuple[int, int, int, int, int]:
    """Rows of a microbatch on a device, image slots, tokens, devices that share heads, and rows."""
    rows = work.rows // work.microbatches // sharding.ways(mesh, "batch")
    slots = image_placeholders(work.model, work.images)[1]
    return rows, slots, work.length, mesh.shape["tensor"], mesh.shape["context"]


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
