"""Every knob, typed and frozen; `config_file` fills them from YAML and flags.

`model_config` holds the sections that say what the network is, `data_config` what it reads. Each
section validates itself when it is made, so an impossible combination never reaches a door's body.
A door hands every part its own section only; `Config` itself stays in the doors.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import NameText, PathText, PatternText, Range, Section, Size, Step
from mllm_jax.config.data import DataConfig
from mllm_jax.config.model import ModelConfig

Count = Annotated[int, Range("[1, 1_000_000]")]
Rate = Annotated[float, Range("(0, 100]")]  # no optimizer of a network survives a higher one
Beta = Annotated[float, Range("[0, 1)")]
Shares = Annotated[dict[NameText, Annotated[float, Range("[0, 1]")]], Size("[0, 10_000]")]
Score = Annotated[float, Range("[-1e300, 1e300]")]
Scores = Annotated[dict[PathText, Score], Size("[0, 10_000]")]
Axis = Annotated[int, Range("[-1, 1_000_000]")]
RUN_ROWS = 10**10  # of a run: at 2,048 tokens each a thousand times the text of the largest corpora
PIXELS = 2**40  # bytes of the images of a batch


@dataclass(frozen=True)
class InitConfig(Section, at="init"):
    """Where a stage's weights come from: a model, run or Hugging Face folder, or random ones."""

    weights: PathText | None = None  # the folder; random when empty
    # regex over parameter paths that are drawn anew although `weights` holds them
    fresh: PatternText | None = None
    tokenizer: PathText | None = None  # folder of tokenizer files; needed when `weights` is empty

    def __post_init__(self):
        super().__post_init__()
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
class ComputeConfig(Section, at="compute"):
    """Number formats, and what is kept for the backward pass.

    Frozen parameters are always held in `compute`.
    """

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    parameters: Literal["float32", "bfloat16"] = "float32"
    # in which gradients of kernels and tables are summed over devices; bfloat16 halves what crosses
    # between them and rounds once more for every device that adds its part
    reduce: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["auto", "dense", "blocks"] = "auto"
    # positions whose logits exist at the same time
    loss_chunk: Annotated[int, Range("[1, 16_777_216]")] = 512


# ----------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class PartConfig(Section, at="optimizer.parts.*"):
    """One rule over parameter paths. Every parameter must be claimed by exactly one part."""

    match: PatternText  # regex, must match the whole path, e.g. "language/.*"
    train: bool = True
    learning_rate: Rate | None = None  # None: optimizer.learning_rate

    def __post_init__(self):
        super().__post_init__()
        require(
            self.train or self.learning_rate is None,
            f"optimizer.parts.*.learning_rate={self.learning_rate} has no effect on a frozen part "
            "(train: false)",
        )


@dataclass(frozen=True)
class OptimizerConfig(Section, at="optimizer"):
    """AdamW with a learning-rate schedule, per part."""

    parts: Annotated[dict[NameText, PartConfig], Size("[1, 1_000]")]
    learning_rate: Rate = 2e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: Beta = 0.03  # share of all steps with a linear rise from 0
    # the schedule ends at floor x learning rate
    floor: Annotated[float, Range("[0, 1]")] = 0.0
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: Annotated[float, Range("(0, 1]")] = 1e-8
    weight_decay: Annotated[float, Range("[0, 100]")] = 0.0
    no_decay: PatternText = r".*(bias|scale|embedding)"  # regex over whole paths
    clip_norm: Annotated[float, Range("(0, 1_000_000_000]", "null for none")] | None = 1.0

    def __post_init__(self):
        super().__post_init__()
        require(
            any(part.train for part in self.parts.values()),
            "optimizer.parts: every part is frozen; set train: true on one",
        )


@dataclass(frozen=True)
class TrainConfig(Section, at="train"):
    """How long, how often saved.

    Give `steps` or `epochs` (over the mixture's records), not both.
    """

    steps: Step | None = None
    epochs: Annotated[float, Range("(0, 1_000_000]")] | None = None
    microbatches: Count = 1
    save_every: Step = 500
    keep: Count = 2  # last checkpoints kept
    keep_every: Step | None = None  # those of steps that are multiples of this stay too
    # and those of the lowest training loss (mean over the trained tokens since the save before)
    keep_best: Annotated[int, Range("[0, 1_000_000]")] = 0
    # a last checkpoint that is not as it was saved: end, or go on from the one before; damaged
    # frozen parameters: end, or write them again from init.weights
    on_damage: Literal["fail", "previous"] = "fail"
    log_every: Step = 10  # steps between printed lines; metrics.jsonl gets every step
    # end here although the schedule spans `steps` (jobs with a time limit); resume later
    stop_at: Step | None = None

    def __post_init__(self):
        super().__post_init__()
        require(
            (self.steps is None) != (self.epochs is None),
            f"train: give steps or epochs, exactly one (steps={self.steps}, epochs={self.epochs})",
        )
        every, save = self.keep_every, self.save_every
        require(
            every is None or every % save == 0,
            f"train.keep_every={every} is not a multiple of train.save_every={save}",
        )


@dataclass(frozen=True)
class MeshConfig(Section, at="mesh"):
    """How many devices each mesh axis spans; -1 once: all that remain."""

    data: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1

    def __post_init__(self):
        super().__post_init__()
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size != 0, f"mesh.{name}=0: give a number of devices, or -1 for the rest")

    @property
    def axes(self) -> tuple[int, int, int]:
        """The sizes in the order of the mesh's axes."""
        return self.data, self.fsdp, self.tensor


@dataclass(frozen=True)
class Config(Section):
    """One stage, complete in itself. The resolved config in a run folder is itself valid input."""

    model: ModelConfig
    init: InitConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    out: PathText = "runs/run"
    seed: Annotated[int, Range("[0, 4_294_967_295]")] = 0

    def __post_init__(self):
        super().__post_init__()
        rows, micro = self.data.rows, self.train.microbatches
        require(
            rows % micro == 0, f"data.rows={rows} is not a multiple of train.microbatches={micro}"
        )
        require(
            self.model.language is not None,
            "model.language: missing; a stage trains a language model, with or without images",
        )
        steps = self.train.steps or 1
        require(
            rows * steps <= RUN_ROWS,
            f"train.steps={steps} x data.rows={rows} is more than the {RUN_ROWS:,} rows that a run "
            "may have",
        )
        if self.model.vision is not None:
            pixels = rows * self.data.image_slots * 3 * self.model.vision.image_size**2
            require(
                pixels <= PIXELS,
                f"data.rows={rows} x data.image_slots={self.data.image_slots}: the images of a "
                f"batch have {pixels:,} bytes; at most {PIXELS:,} are allowed",
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
class FolderConfig(Section):
    """`config.yaml` of a model folder: what the network is, what a model card should say of it."""

    model: ModelConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the stored parameters
    languages: Annotated[tuple[NameText, ...], Size("[0, 10_000]")] = ()
    base_models: Annotated[tuple[PathText, ...], Size("[0, 10_000]")] = ()
    shares: Shares = field(default_factory=dict)  # stream -> share of trained tokens
    # "exact match (eu)" -> value
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateConfig(Section, at="evaluate"):
    """Held-out data at the end of a recipe: a LLaVA JSON file."""

    data: PathText
    images: PathText | None = None
    max_new_tokens: Annotated[int, Range("[1, 1_048_576]")] = 32
    rows: Annotated[int, Range("[1, 65_536]")] = 32  # answered at the same time


@dataclass(frozen=True)
class RecipeConfig(Section):
    """Stages in order, each from the last one's weights, then evaluation and export."""

    stages: Annotated[
        tuple[PathText, ...], Size("[1, 1_000]", "name at least one stage file")
    ]  # stage files, relative to the recipe file
    out: PathText = "runs/recipe"
    evaluate: EvaluateConfig | None = None
    export: Literal["float32", "bfloat16"] | None = "bfloat16"
