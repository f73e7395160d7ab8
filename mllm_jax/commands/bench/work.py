"""What `mllm-jax bench` times: a model of some size, or a stage file's, and synthetic rows.

One row = one image (if the model has a vision tower) followed by text, `length` tokens in all,
every text token trained; or text alone. tests/benchmarks/pytorch_baseline.py trains on the same
rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mllm_jax.batch import NEWLINE, TEXT, Batch
from mllm_jax.common.errors import require
from mllm_jax.config import loading
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import (
    ComputeConfig,
    Config,
    MeshConfig,
    OptimizerConfig,
    PartConfig,
    check_rounding,
)
from mllm_jax.data.images.tiles import Placeholders, placeholders

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
LORA = "language/layers/.*/kernel"  # what --lora adapts; the rest of the language model is frozen


class Work(NamedTuple):
    """What is timed: one step of this."""

    model: ModelConfig
    compute: ComputeConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    length: int  # tokens in a row
    rows: int  # of an update
    microbatches: int = 1  # the rows are worked in so many turns
    adapter: AdapterConfig | None = None
    images: bool = True  # False: rows of text alone
    segments: int | None = None  # the most examples that a row holds, as the stage file says


@dataclass(frozen=True)
class SizeOptions:
    """What overrides can change of a size: sections of a stage file."""

    compute: ComputeConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        check_rounding(self.optimizer, self.compute)


def from_size(
    size: str,
    stage: str,
    length: int,
    rows: int,
    dtype: str,
    remat: str,
    lora: int | None = None,
    overrides: Sequence[str] = (),
) -> Work:
    """A model of this size: mlp connector, parameters in `dtype`.

    Args:
        size: a key of SIZES.
        stage: what is trained: a key of TRAINED.
        length: tokens in a row.
        rows: of an update.
        dtype: number format of parameters and products.
        remat: as `compute.remat`.
        lora: rank of adapters in the language layers, which are then frozen; for "instruct".
        overrides: options of `SizeOptions`, as in `loading.load`.

    Raises:
        ConfigError: an override that is not valid.
    """
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
    kind = "align" if lora else stage
    parts = {"trained": PartConfig(TRAINED[kind])}
    if kind in FROZEN:
        parts["frozen"] = PartConfig(FROZEN[kind], train=False)
    adamw = OptimizerConfig(
        parts=parts, learning_rate=1e-5, schedule="constant", warmup_ratio=0.0, weight_decay=0.01
    )
    adapter = AdapterConfig(LORA, rank=lora, alpha=2.0 * lora) if lora else None
    options = loading.to_dict(SizeOptions(compute, adamw))
    options = loading.build(SizeOptions, loading.overridden(options, overrides))
    return Work(
        *(model, options.compute, options.optimizer, options.mesh, length, rows), adapter=adapter
    )


def from_config(
    config: Config, length: int | None, rows: int | None, dtype: str | None, remat: str | None
) -> Work:
    """A stage file's work; flags overrule it. By default the rows of one of its microbatches."""
    changes = {"compute": dtype, "parameters": dtype, "remat": remat}
    compute = _changed(config.compute, changes)
    rows = rows or config.data.rows // config.train.microbatches
    length = length or config.data.length
    return Work(
        *(config.model, compute, config.optimizer, config.mesh, length, rows),
        adapter=config.adapter,
        segments=config.data.segments,
    )


def _changed(compute: ComputeConfig, changes: Mapping[str, Any]) -> ComputeConfig:
    changed = {name: value for name, value in changes.items() if value is not None}
    return loading.build(ComputeConfig, loading.to_dict(compute) | changed)


# ------------------------------------------------------------------------------------- settings


class Axes(NamedTuple):
    """The values of each setting that are tried, in every combination; empty: as the work has."""

    rows: Sequence[int] = ()
    microbatches: Sequence[int] = ()
    attention: Sequence[str] = ()
    remat: Sequence[str] = ()


def combinations(work: Work, axes: Axes) -> list[Work]:
    """The work in all settings of the axes, fewest rows first.

    Raises:
        ConfigError: a name that the config does not know, or rows that the microbatches do not
            divide.
    """
    works = []
    for rows, turns, attention, remat in itertools.product(
        axes.rows or (work.rows,),
        axes.microbatches or (work.microbatches,),
        axes.attention or (None,),
        axes.remat or (None,),
    ):
        require(
            rows % turns == 0,
            f"--batch {rows} --microbatches {turns}: the rows do not divide into so many; "
            f"give a multiple of {turns}",
        )
        compute = _changed(work.compute, {"attention": attention, "remat": remat})
        works.append(work._replace(rows=rows, microbatches=turns, compute=compute))
    return works


# ------------------------------------------------------------------------------------- rows


def synthetic(model: ModelConfig, rows: int, length: int, images: bool = True) -> Batch:
    """Random rows: BOS, one square image if the model has a vision tower, text.

    The targets after the image's last placeholder are trained; without `images` all are.
    """
    assert model.language is not None
    random = np.random.default_rng(0)
    (image, slots), shape = image_placeholders(model, images), (rows, length)
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


def image_placeholders(model: ModelConfig, images: bool = True) -> tuple[Placeholders, int]:
    """The placeholders of an image of the tower's own size, and its image slots."""
    if model.vision is None or not model.patches or not images:
        return np.zeros(0, np.int32), 0
    layout = model.image_layout((model.vision.image_size, model.vision.image_size))
    return placeholders(layout, model.vision), layout.tiles
