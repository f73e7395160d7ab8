"""Every knob, typed and frozen; `config_file` fills them from YAML and flags. Ground floor.

`model_config` holds the sections that say what the network is, `data_config` what it reads. Each
section validates itself when it is made, so an impossible combination never reaches a door's body.
A door hands every part its own section only; `Config` itself stays in the doors.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from mllm_jax.data_config import DataConfig
from mllm_jax.errors import ConfigError, require
from mllm_jax.model_config import ModelConfig


@dataclass(frozen=True)
class InitConfig:
    """Where a stage's weights come from: a model, run or Hugging Face folder, or random ones."""

    weights: str | None = None  # the folder; random when empty
    # regex over parameter paths that are drawn anew although `weights` holds them
    fresh: str | None = None
    tokenizer: str | None = None  # folder of tokenizer files; needed when `weights` is empty

    def __post_init__(self):
        require(
            self.weights is not None or self.tokenizer is not None,
            "init: give weights (a model, run or Hugging Face folder) or, for random weights, "
            "a tokenizer folder",
        )
        require(
            self.fresh is None or self.weights is not None,
            f"init.fresh={self.fresh!r} has no effect without init.weights",
        )


@dataclass(frozen=True)
class ComputeConfig:
    """Number formats, and what is kept for the backward pass.

    Frozen parameters are always held in `compute`.
    """

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    parameters: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["auto", "dense", "blocks"] = "auto"
    loss_chunk: int = 512  # positions whose logits exist at the same time

    def __post_init__(self):
        require(self.loss_chunk > 0, f"compute.loss_chunk={self.loss_chunk} must be positive")


# ----------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class PartConfig:
    """One rule over parameter paths. Every parameter must be claimed by exactly one part."""

    match: str  # regex, must match the whole path, e.g. "language/.*"
    train: bool = True
    learning_rate: float | None = None  # None: optimizer.learning_rate

    def __post_init__(self):
        try:
            re.compile(self.match)
        except re.error as error:
            raise ConfigError(
                f"optimizer.parts.*.match={self.match!r} is no regular expression: {error}"
            ) from error
        require(
            self.train or self.learning_rate is None,
            f"optimizer.parts.*.learning_rate={self.learning_rate} has no effect on a frozen part "
            "(train: false)",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a learning-rate schedule, per part."""

    parts: dict[str, PartConfig]
    learning_rate: float = 2e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.03  # share of all steps with a linear rise from 0
    floor: float = 0.0  # the schedule ends at floor x learning rate
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: str = r".*(bias|scale|embedding)"  # regex over whole paths
    clip_norm: float | None = 1.0

    def __post_init__(self):
        require(
            any(part.train for part in self.parts.values()),
            "optimizer.parts: every part is frozen; set train: true on one",
        )
        require(
            0 <= self.warmup_ratio < 1,
            f"optimizer.warmup_ratio={self.warmup_ratio} must lie in [0, 1)",
        )
        require(0 <= self.floor <= 1, f"optimizer.floor={self.floor} must lie in [0, 1]")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm={self.clip_norm} must be positive or null",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How long, how often saved.

    Give `steps` or `epochs` (over the mixture's records), not both.
    """

    steps: int | None = None
    epochs: float | None = None
    microbatches: int = 1
    save_every: int = 500
    keep: int = 2  # last checkpoints kept
    keep_every: int | None = None  # those of steps that are multiples of this stay too
    # and those of the lowest training loss (mean over the trained tokens since the save before)
    keep_best: int = 0
    # a last checkpoint that is not as it was saved: end, or go on from the one before
    on_damage: Literal["fail", "previous"] = "fail"
    log_every: int = 10  # steps between printed lines; metrics.jsonl gets every step
    # end here although the schedule spans `steps` (jobs with a time limit); resume later
    stop_at: int | None = None

    def __post_init__(self):
        require(
            (self.steps is None) != (self.epochs is None),
            f"train: give steps or epochs, exactly one (steps={self.steps}, epochs={self.epochs})",
        )
        for name in (
            "steps epochs microbatches save_every keep keep_every log_every stop_at"
        ).split():
            value = getattr(self, name)
            require(value is None or value > 0, f"train.{name}={value} must be positive")
        require(self.keep_best >= 0, f"train.keep_best={self.keep_best} must be 0 or more")
        every, save = self.keep_every, self.save_every
        require(
            every is None or every % save == 0,
            f"train.keep_every={every} is not a multiple of train.save_every={save}",
        )


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis spans; -1 once: all that remain."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Config:
    """One stage, complete in itself. The resolved config in a run folder is itself valid input."""

    model: ModelConfig
    init: InitConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    out: str = "runs/run"
    seed: int = 0

    def __post_init__(self):
        rows, micro = self.data.rows, self.train.microbatches
        require(
            rows % micro == 0, f"data.rows={rows} is not a multiple of train.microbatches={micro}"
        )
        require(
            self.model.language is not None,
            "model.language: missing; a stage trains a language model, with or without images",
        )
        if self.model.patches and self.data.image_slots:
            require(
                self.data.length > self.model.patches,
                f"data.length={self.data.length} is too short for one image of "
                f"{self.model.patches} tokens",
            )
        if not self.model.patches:
            require(
                self.data.image_slots == 0,
                f"data.image_slots={self.data.image_slots}: the model reads no images, set 0",
            )


@dataclass(frozen=True)
class FolderConfig:
    """`config.yaml` of a model folder: what the network is, what a model card should say of it."""

    model: ModelConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the stored parameters
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)  # stream -> share of trained tokens
    scores: dict[str, float] = field(default_factory=dict)  # "exact match (eu)" -> value


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out data at the end of a recipe: a LLaVA JSON file."""

    data: str
    images: str | None = None
    max_new_tokens: int = 32
    rows: int = 32  # answered at the same time


@dataclass(frozen=True)
class RecipeConfig:
    """Stages in order, each from the last one's weights, then evaluation and export."""

    stages: tuple[str, ...]  # stage files, relative to the recipe file
    out: str = "runs/recipe"
    evaluate: EvaluateConfig | None = None
    export: Literal["float32", "bfloat16"] | None = "bfloat16"

    def __post_init__(self):
        require(len(self.stages) > 0, "stages: empty; name at least one stage file")
