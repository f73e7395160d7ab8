"""Defines the options of a stage and of a model folder, typed and frozen.

`config.model` holds the sections that say what the network is, `config.data` what it reads,
`config.recipe` those of a recipe, and `config.loading` fills them from YAML and flags. Each section
validates itself when it is made, so a command never sees an impossible combination; it hands every
part its own section only.

The text under a field says what it means: editors show it, `config.reference` prints it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from mllm_jax.common.errors import quoted, require
from mllm_jax.common.ranges import NameText, PathText, PatternText, Range, Section, Size, Step, Text
from mllm_jax.config.adapter import PART as ADAPTER_PART
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.data import LIMITED, DataConfig, StreamConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.optimizer import OptimizerConfig
from mllm_jax.config.optimizer import PartConfig as PartConfig

Count = Annotated[int, Range("[1, 1_000_000]")]
Shares = Annotated[dict[NameText, Annotated[float, Range("[0, 1]")]], Size("[0, 10_000]")]
Score = Annotated[float, Range("[-1e300, 1e300]")]
Scores = Annotated[dict[Annotated[str, Text()], Score], Size("[0, 10_000]")]
Axis = Annotated[int, Range("[-1, 1_000_000]")]
RUN_ROWS = 10**10  # of a run: at 2,048 tokens each a thousand times the text of the largest corpora
PIXELS = 2**40  # bytes of the images of a batch


@dataclass(frozen=True)
class InitConfig(Section, at="init"):
    """Where a stage's weights come from: a model, run or Hugging Face folder, or random ones."""

    weights: PathText | None = None
    """A model, run or Hugging Face folder; without it, parameters are random."""
    fresh: PatternText | None = None
    """Regex over whole parameter paths that are reinitialised although `weights` has them."""
    tokenizer: PathText | None = None
    """Folder of tokenizer files; needed without `weights`, not read with them."""

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


Remat = Literal["none", "dots", "attention", "full", "offload"]


@dataclass(frozen=True)
class ComputeConfig(Section, at="compute"):
    """Number formats, and what is stored for the backward pass."""

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of activations and frozen parameters."""
    parameters: Literal["float32", "bfloat16"] = "float32"
    """Number format of trained parameters; for bfloat16 see `optimizer.rounding`."""
    gradients: Literal["float32", "bfloat16"] = "float32"
    """Number format in which gradients are held and added up over microbatches."""
    reduce: Literal["float32", "bfloat16"] = "float32"
    """Number format in which gradients are summed over devices.

    bfloat16 halves the bytes between devices and rounds once more for every device.
    """
    remat: Remat = "full"
    """What the backward pass computes again to save memory: nothing, all but a few results, or all.

    `dots` keeps the products with weights, `attention` the results of attention and the sums of its
    softmax, `offload` the same in the host's memory, with the layers' inputs; see
    docs/preflight.md.
    """
    remat_vision: Remat | None = None
    """The same for the image tower, if it is trained; by default as `remat`."""
    attention: Literal[
        "auto", "dense", "blocks", "loop", "splash", "cudnn", "tokamax", "triton"
    ] = "auto"
    """How attention is computed; `auto` chooses by platform and length.

    `dense` holds all scores, `blocks` an eighth of a row's, `loop` (CPUs) one small block's; none
    `splash` on TPUs, `cudnn`, `tokamax` and `triton` on GPUs, in bfloat16; see docs/attention.md.
    """
    loss_chunk: Annotated[int, Range("[1, 16_777_216]")] = 512
    """Positions of a row whose logits are in memory at the same time, at most."""
    compiler_flags: Literal["auto", "none"] = "auto"
    """Options of XLA for the train step: those tested for the chip, or none.

    They let transfers between devices run beside products; see docs/preflight.md.
    """

    @property
    def vision_remat(self) -> Remat:
        """What `remat_vision` settles."""
        return self.remat if self.remat_vision is None else self.remat_vision


# ----------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class HeldOutConfig(Section, at="train.evaluate"):
    """Held-out loss while a stage trains, the same tokens every time. Give `data` or `streams`."""

    data: PathText | None = None
    """LLaVA JSON or JSONL file of records that are not trained on; each names its language."""
    images: PathText | None = None
    """Where the image paths of `data` start; by default `images` beside it, or else its folder."""
    streams: Annotated[dict[NameText, StreamConfig], Size("[0, 1_000]")] = field(
        default_factory=dict
    )
    """Several held-out sources instead of `data`, by name; each also has a loss of its own."""
    every: Step = 500
    """Steps between evaluations; there is one after the last step too."""
    records: Annotated[int, Range("[1, 1_000_000]")] = 256
    """The first so many examples of every language in every stream are evaluated."""
    stop_after: Count | None = None
    """End the stage after so many evaluations in a row without a new lowest loss."""
    samples: Annotated[int, Range("[0, 1_000]")] = 0
    """Held-out questions answered at every evaluation, as text in RUN/samples."""
    max_new_tokens: Annotated[int, Range("[1, 4_096]")] = 32
    """Tokens after which the answer of a sample is cut."""

    def __post_init__(self):
        super().__post_init__()
        require(
            (self.data is None) != (not self.streams),
            f"train.evaluate: give data or streams, exactly one (data={quoted(self.data)}, "
            f"{len(self.streams)} streams)",
        )
        require(
            self.images is None or self.data is not None,
            f"train.evaluate.images={quoted(self.images)} has no effect on streams; give each of "
            "them its own",
        )
        paired = [name for name, stream in self.streams.items() if stream.pairs is not None]
        require(
            not paired,
            f"train.evaluate.streams.{', '.join(paired)}: pairs has no effect on a held-out loss",
        )


@dataclass(frozen=True)
class WandbConfig(Section, at="train.wandb"):
    """Metrics also as a Weights & Biases run; needs the extra `wandb`."""

    project: NameText
    """Project that the run belongs to."""
    mode: Literal["offline", "online"] = "offline"
    """Offline writes RUN/wandb, for `wandb sync` later; online sends while the stage trains."""


@dataclass(frozen=True)
class TrainConfig(Section, at="train"):
    """How long a stage trains and when it saves. Give `steps` or `epochs`, not both."""

    steps: Step | None = None
    """Optimizer steps of the whole run; the schedule spans them."""
    epochs: Annotated[float, Range("(0, 1_000_000]")] | None = None
    """Passes over the mixture, instead of `steps`."""
    microbatches: Count = 1
    """Parts of a batch that are computed one after another to save memory; same gradients."""
    save_every: Step = 500
    """Steps between checkpoints; the last step is saved too."""
    keep: Count = 2
    """How many of the last checkpoints stay on disk."""
    keep_every: Step | None = None
    """Checkpoints of steps that are multiples of this stay too; a multiple of `save_every`."""
    keep_best: Annotated[int, Range("[0, 1_000_000]")] = 0
    """And this many with the lowest loss."""
    keep_best_by: Literal["training", "heldout"] = "training"
    """The loss of `keep_best`: of the steps since the checkpoint before, or of `evaluate`."""
    on_damage: Literal["fail", "previous"] = "fail"
    """What `--resume` does when the last checkpoint is corrupt: fail, or use the one before.

    Corrupt frozen parameters: fail, or write them again from `init.weights`.
    """
    log_every: Step = 10
    """Steps between printed lines when piped, at most 30 s; metrics.jsonl gets every step."""
    stop_at: Step | None = None
    """Step at which to stop early, for jobs with a time limit; continue with `--resume`."""
    evaluate: HeldOutConfig | None = None
    """Measure the loss on held-out records while the stage trains."""
    wandb: WandbConfig | None = None
    """Log to Weights & Biases too."""

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
        if self.keep_best_by == "heldout":
            self._check_keep_best()

    def _check_keep_best(self) -> None:
        """Every checkpoint needs a held-out loss to be kept by."""
        require(
            self.keep_best > 0,
            "train.keep_best_by=heldout has no effect with train.keep_best=0; give the number of "
            "checkpoints to keep",
        )
        require(
            self.evaluate is not None,
            "train.keep_best_by=heldout needs held-out records; give train.evaluate.data",
        )
        assert self.evaluate is not None
        require(
            self.save_every % self.evaluate.every == 0,
            f"train.save_every={self.save_every} is not a multiple of train.evaluate.every="
            f"{self.evaluate.every}: with train.keep_best_by=heldout every checkpoint needs a "
            "held-out loss",
        )


@dataclass(frozen=True)
class MeshConfig(Section, at="mesh"):
    """How many devices each mesh axis spans; -1 once: all that remain."""

    data: Axis = -1
    """Devices over which the parameters are replicated and rows are split."""
    fsdp: Axis = 1
    """Devices over which parameters, optimizer state and rows are split."""
    tensor: Axis = 1
    """Devices over which heads, feed-forward layers and vocabulary are split."""
    context: Axis = 1
    """Devices over which the length of a row is split, and parameters as over `fsdp`.

    For rows of 8,192 tokens or more; see docs/launching.md, "Long rows".
    """

    def __post_init__(self):
        super().__post_init__()
        for name, size in dataclasses.asdict(self).items():
            require(size != 0, f"mesh.{name}=0: give a number of devices, or -1 for the rest")

    @property
    def axes(self) -> tuple[int, int, int, int]:
        """The sizes in the order of the mesh's axes."""
        return self.data, self.fsdp, self.tensor, self.context


@dataclass(frozen=True)
class Config(Section):
    """One stage, complete in itself. The resolved config in a run folder is itself valid input.

    `init`, `data`, `optimizer` and `train` are required. A file may leave out `model`: it is then
    that of `init.weights`.
    """

    model: ModelConfig
    """What the network is."""
    init: InitConfig
    """Where the weights come from."""
    data: DataConfig
    """What is read."""
    optimizer: OptimizerConfig
    """Which parameters are trained, and how."""
    train: TrainConfig
    """How long, and what is saved."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Number formats and memory."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How the devices are used."""
    adapter: AdapterConfig | None = None
    """Train low-rank updates (LoRA) of frozen matrices; none by default."""
    out: PathText = "runs/run"
    """The run folder."""
    seed: Annotated[int, Range("[0, 4_294_967_295]")] = 0
    """Seed of the order of the data and of random parameters."""

    def __post_init__(self):
        super().__post_init__()
        if self.compute.attention in LIMITED:
            object.__setattr__(self, "data", self.data.bounded())
        self._check_parts()
        self._check_noise()
        check_rounding(self.optimizer, self.compute)
        require(
            self.compute.remat_vision is None or self.model.vision is not None,
            f"compute.remat_vision={self.compute.remat_vision} has no effect: the model has no "
            "image tower; leave it out",
        )
        self._check_pairs()
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

    def _check_noise(self) -> None:
        """NEFTune changes what is read; a caption is text that is written, and nothing else."""
        alpha, streams = self.optimizer.neftune_alpha, self.data.streams.values()
        require(
            not alpha or not all(stream.is_caption for stream in streams),
            f"optimizer.neftune_alpha={alpha}: the stage has no text to read, all its streams are "
            "captions (format plain or plain_newline); leave it out",
        )

    def _check_pairs(self) -> None:
        pairs, streams = self.optimizer.pairs, self.data.streams.values()
        require(
            not pairs.acts or any(stream.pairs is not None for stream in streams),
            f"optimizer.pairs: kl={pairs.kl}, contrastive={pairs.contrastive}, but no stream has "
            "pairs; name the field that two records share under data.streams.*.pairs",
        )

    def _check_parts(self) -> None:
        parts = self.optimizer.parts
        require(
            self.adapter is not None or any(part.train for part in parts.values()),
            "optimizer.parts: every part is frozen; set train: true on one, or give an adapter",
        )
        require(
            self.adapter is None or ADAPTER_PART not in parts,
            f"optimizer.parts.{ADAPTER_PART}: the name is taken: the section adapter has its own "
            "learning_rate; rename the part",
        )


def check_rounding(optimizer: OptimizerConfig, compute: ComputeConfig) -> None:
    """Raises ConfigError for a rounding of parameters that need none."""
    rounding = optimizer.rounding
    require(
        rounding == "nearest" or compute.parameters == "bfloat16",
        f"optimizer.rounding={rounding} has no effect on {compute.parameters} parameters; set "
        "compute.parameters to bfloat16, or leave it out",
    )


@dataclass(frozen=True)
class FolderConfig(Section):
    """`config.yaml` of a model folder: what the network is, what a model card should say of it."""

    model: ModelConfig
    """What the network is."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the stored parameters."""
    languages: Annotated[tuple[NameText, ...], Size("[0, 10_000]")] = ()
    """Languages that it was trained on."""
    base_models: Annotated[tuple[PathText, ...], Size("[0, 10_000]")] = ()
    """Models that it was made from."""
    shares: Shares = field(default_factory=dict)
    """Stream -> its share of the trained tokens."""
    scores: Scores = field(default_factory=dict)
    """Name of a score, as `exact match (eu)` -> value."""
    adapter: AdapterConfig | None = None
    """Adapters in a run's checkpoints, which are merged into the matrices as these are read."""
