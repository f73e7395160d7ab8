"""How fast the real train step is, on synthetic rows; compile time apart.

One row = one image (when the model has eyes) followed by text, `length` tokens in all, every text
token trained. tests/benchmarks/pytorch_baseline.py does the same work in PyTorch with the same
sizes, stages and JSON field names, so the two can be divided.

    MFU = useful FLOPs per step / (step seconds x chips x published bfloat16 rate)

The useful FLOPs are written out in training/flops.py: 6 N_matmul + 6 L d T per token that is
trained through (causal, input embedding not counted), frozen parts 2 or 4 as they are.
"""

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mllm_jax.batch import NEWLINE, TEXT, Batch
from mllm_jax.checkpoints import stage_file
from mllm_jax.common.errors import require
from mllm_jax.common.folders import check_file, write_whole
from mllm_jax.common.hardware import peak_rate
from mllm_jax.common.host_memory import keep_freed
from mllm_jax.config import loading
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig, Config, MeshConfig, OptimizerConfig, PartConfig
from mllm_jax.data.images.tiles import Placeholders, placeholders
from mllm_jax.distributed import sharding
from mllm_jax.training import flops, state
from mllm_jax.training.setup import (
    TrainSetup,
    compile_train_step,
    init_params,
    make_setup,
    shard_batch,
)

# vision (width, mlp, layers, heads, image, patch),
# language (width, mlp, layers, heads, kv heads, vocab)
SIZES = {
    "tiny": ((64, 256, 4, 4, 56, 14), (128, 384, 4, 4, 2, 1024)),
    "small": ((256, 1024, 6, 4, 336, 14), (512, 1536, 8, 8, 4, 32000)),
    "1b": ((1024, 4096, 24, 16, 336, 14), (2048, 8192, 16, 32, 8, 128256)),
    "8b": ((1024, 4096, 24, 16, 336, 14), (4096, 14336, 32, 32, 8, 128256)),
}
TRAINED = {"align": "connector/.*", "instruct": "(connector|language)/.*", "full": ".*"}
FROZEN = {"align": "(vision|language)/.*", "instruct": "vision/.*"}
WARMUP = 2  # steps before the clock starts: caches and allocators settle


class Work(NamedTuple):
    """What is timed."""

    model: ModelConfig
    compute: ComputeConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    length: int  # tokens in a row
    rows: int


def main(
    config: str | None = None,
    size: str | None = None,
    stage: str | None = None,
    length: int | None = None,
    batch: int | None = None,
    steps: int = 5,
    dtype: str | None = None,
    remat: str | None = None,
    json_file: str | None = None,
) -> None:
    """`mllm-jax bench`: times a config's stage, or one of SIZES.

    Args:
        config: a stage file; excludes `size` and `stage`.
        size: a key of SIZES.
        stage: what is trained: a key of TRAINED.
        length: tokens in a row.
        batch: rows.
        steps: timed steps.
        dtype: number format of parameters and products.
        remat: as `compute.remat`.
        json_file: where the printed JSON object is also written.

    Raises:
        ConfigError: flags that exclude each other, or a batch that does not fit model or mesh.
    """
    require(
        (config is None) != (size is None),
        "bench: give --config FILE or --size tiny|small|1b|8b, exactly one",
    )
    if json_file is not None:
        check_file(json_file)
    if config is not None:
        require(
            stage is None,
            f"bench: --stage {stage} has no effect with --config; its optimizer.parts say what is "
            "trained",
        )
        work = from_config(stage_file.load(config), length, batch, dtype, remat)
    else:
        work = from_size(
            size or "",
            stage or "instruct",
            length or 1024,
            batch or 2,
            dtype or "float32",
            remat or "none",
        )
    result = {
        "size": size or Path(config or "").stem,
        "stage": stage or ("config" if config else "instruct"),
    } | measure(work, steps)
    text = json.dumps(result)
    print(text)
    if json_file is not None:
        write_whole(Path(json_file), text + "\n")


def from_size(size: str, stage: str, length: int, rows: int, dtype: str, remat: str) -> Work:
    """A model of this size: mlp connector, parameters in `dtype`."""
    v, t = SIZES[size]
    model = ModelConfig(
        VisionConfig(
            image_size=v[4], patch_size=v[5], width=v[0], mlp=v[1], layers=v[2], heads=v[3]
        ),
        ConnectorConfig("mlp"),
        LanguageConfig(
            vocab=t[5],
            width=t[0],
            mlp=t[1],
            layers=t[2],
            heads=t[3],
            kv_heads=t[4],
            head_dim=t[0] // t[3],
        ),
        image_token=t[5] - 1,
    )
    formats = {"compute": dtype, "parameters": dtype, "remat": remat}
    compute = loading.build(ComputeConfig, {**formats, "loss_chunk": min(512, length)})
    parts = {"trained": PartConfig(TRAINED[stage])}
    if stage in FROZEN:
        parts["frozen"] = PartConfig(FROZEN[stage], train=False)
    adamw = OptimizerConfig(
        parts=parts, learning_rate=1e-5, schedule="constant", warmup_ratio=0.0, weight_decay=0.01
    )
    return Work(model, compute, adamw, MeshConfig(), length, rows)


def from_config(
    config: Config, length: int | None, rows: int | None, dtype: str | None, remat: str | None
) -> Work:
    """A stage file's work; flags overrule it. Rows are those of one microbatch."""
    changes = {"compute": dtype, "parameters": dtype, "remat": remat}
    raw = loading.to_dict(config.compute) | {
        key: value for key, value in changes.items() if value is not None
    }
    compute = loading.build(ComputeConfig, raw)
    rows = rows or config.data.rows // config.train.microbatches
    length = length or config.data.length
    return Work(config.model, compute, config.optimizer, config.mesh, length, rows)


def measure(work: Work, steps: int) -> dict[str, Any]:
    """Compiles and times `steps` steps after WARMUP.

    The loss is fetched every step, as the PyTorch baseline does.
    """
    model, compute, _, _, length, rows = work
    index, _ = _image(model)
    require(
        length > len(index) + 1,
        f"--length {length}: too short for an image of {len(index)} tokens and text",
    )
    mesh = sharding.make_mesh(work.mesh.axes)
    keep_freed(mesh.devices.flat[0].platform)
    parts = sharding.ways(mesh, "batch")
    require(
        rows % parts == 0,
        f"--batch {rows} does not divide over {parts} devices; give a multiple of {parts}",
    )
    setup = make_setup(model, compute, work.optimizer, mesh, steps=1_000)
    now = state.create_state(
        init_params(setup, setup.params, seed=0), setup.optimizer, setup.abstract, setup.shardings
    )
    batch = synthetic(model, rows, length)
    compiled = compile_train_step(setup, now, batch, 1, 1, 1)
    placed, times, loss = shard_batch(batch, mesh), [], 0.0
    for _ in range(WARMUP + steps):
        start = time.perf_counter()
        now, metrics = compiled.call(now, placed)
        loss = float(metrics["loss"])
        times.append(time.perf_counter() - start)
    targets = int(np.count_nonzero(batch.weights))
    median = sorted(times[WARMUP:])[steps // 2]
    return report(setup, rows, length, targets, median, compiled.seconds, loss)


def synthetic(model: ModelConfig, rows: int, length: int) -> Batch:
    """Random rows: BOS, one square image if the model has a vision tower, text.

    The targets after the image's last placeholder are trained.
    """
    assert model.language is not None
    random = np.random.default_rng(0)
    (image, slots), shape = _image(model), (rows, length)
    end = len(image)
    ids = random.integers(0, model.language.vocab - 1, shape, dtype=np.int32)
    index = np.full(shape, TEXT, np.int32)
    if slots:
        assert model.image_token is not None
        ids[:, 1 : 1 + end] = model.image_token
        index[:, 1 : 1 + end] = np.where(image == NEWLINE, slots * model.patches, image)
    weights = np.ones(shape, np.float32)
    weights[:, :end] = 0  # targets that are image tokens
    weights[:, -1] = 0  # nothing follows
    side = model.vision.image_size if model.vision is not None and slots else 1
    pixels = random.integers(0, 256, (rows, slots, side, side, 3), dtype=np.uint8)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy()
    zeros, ones = np.zeros(shape, np.int32), np.ones(shape, np.int32)
    return Batch(
        ids, np.roll(ids, -1, axis=1), weights, ones, positions, index, zeros, zeros, pixels
    )


def _image(model: ModelConfig) -> tuple[Placeholders, int]:
    """The placeholders of an image of the tower's own size, and its image slots."""
    if model.vision is None or not model.patches:
        return np.zeros(0, np.int32), 0
    layout = model.image_layout((model.vision.image_size, model.vision.image_size))
    return placeholders(layout, model.vision), layout.tiles


def report(
    setup: TrainSetup,
    rows: int,
    length: int,
    targets: int,
    seconds: float,
    compile_seconds: float,
    loss: float,
) -> dict[str, Any]:
    """The figures of a run, field names as the PyTorch baseline's where both have them."""
    device = setup.mesh.devices.flat[0]
    trainable = setup.abstract.trainable
    config, compute = setup.model.config, setup.model.compute
    images = rows * _image(config)[1]
    useful = flops.flops_per_step(config, trainable, rows, length, images, targets=float(targets))
    peak = peak_rate(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "jax": jax.__version__,
        "device": device.device_kind,
        "devices": setup.mesh.size,
        "dtype": compute.compute,
        "parameter_dtype": compute.parameters,
        "remat": compute.remat,
        "batch": rows,
        "length": length,
        "median_step_seconds": round(seconds, 4),
        "targets": targets,
        "tokens_per_second": round(rows * length / seconds, 1),
        "loss": round(loss, 4),
        "parameters": _count(setup.abstract.params),
        "trainable": _count(setup.abstract.trainable),
        "peak_gib": round(memory / 2**30, 2) if memory else None,
        "compile_seconds": round(compile_seconds, 2),
        "flops_per_step": useful,
        "teraflops_per_second": round(useful / seconds / 1e12, 4),
        "mfu": round(useful / seconds / (peak * setup.mesh.size), 4) if peak else None,
        "mfu_formula": "flops_per_step / (median_step_seconds * devices * published bf16 rate); "
        "flops_per_step = tokens * (6 N_matmul + 6 L d T) where trained through, 4 N frozen with "
        "gradient, 2 N frozen forward only; the head's N for `targets` alone",
    }


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
