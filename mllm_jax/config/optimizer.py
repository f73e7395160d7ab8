"""Options of the optimizer: which parameters are trained, how far, and what is stored for them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import NameText, PatternText, Range, Section, Size
from mllm_jax.config.pairs import PairsConfig

Rate = Annotated[float, Range("(0, 100]")]  # no optimizer of a network survives a higher one
Beta = Annotated[float, Range("[0, 1)")]


@dataclass(frozen=True)
class PartConfig(Section, at="optimizer.parts.*"):
    """One rule over parameter paths. Every parameter must be claimed by exactly one part."""

    match: PatternText
    """Regex that matches whole parameter paths, as `language/.*`."""
    train: bool = True
    """Whether these parameters are trained; `false` freezes them."""
    learning_rate: Rate | None = None
    """Their own peak learning rate; by default `optimizer.learning_rate`."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.train or self.learning_rate is None,
            f"optimizer.parts.*.learning_rate={self.learning_rate} has no effect on a frozen part "
            "(train: false)",
        )


@dataclass(frozen=True)
class OptimizerConfig(Section, at="optimizer"):
    """AdamW with a learning-rate schedule, per part, and noise on what is read."""

    parts: Annotated[dict[NameText, PartConfig], Size("[1, 1_000]")]
    """Rules that say which parameters are trained, by name; every parameter belongs to one."""
    learning_rate: Rate = 2e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: falls by a cosine to `floor`, or stays."""
    warmup_ratio: Beta = 0.03
    """Share of all steps over which the learning rate rises linearly from 0."""
    floor: Annotated[float, Range("[0, 1]")] = 0.0
    """Where the cosine ends, as a share of the peak learning rate."""
    beta1: Beta = 0.9
    """Decay of AdamW's first moment."""
    beta2: Beta = 0.999
    """Decay of AdamW's second moment."""
    eps: Annotated[float, Range("(0, 1]")] = 1e-8
    """Added to the root of the second moment."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """Number format of both moments: 8, 4 or 2.03 bytes per trained parameter.

    bfloat16 and int8 are rounded stochastically; int8 has a float32 scale for every block.
    """
    rounding: Literal["nearest", "stochastic", "kahan"] = "nearest"
    """How trained parameters in bfloat16 are rounded after an update.

    `nearest` loses changes below 0.4 % of a weight. `stochastic` rounds up or down by chance, right
    on average. `kahan` keeps what was lost in a second bfloat16 number, 2 bytes per parameter.
    """
    weight_decay: Annotated[float, Range("[0, 100]")] = 0.0
    """AdamW's decoupled weight decay."""
    no_decay: PatternText = r".*(bias|scale|embedding)"
    """Regex over whole parameter paths without weight decay."""
    clip_norm: Annotated[float, Range("(0, 1_000_000_000]", "null for none")] | None = 1.0
    """Gradients with a larger global norm are scaled down to it; null for no limit."""
    neftune_alpha: Annotated[float, Range("[0, 1_000]")] = 0.0
    """NEFTune: noise on the embeddings of text while training, commonly 5; 0 for none.

    U(-m, m) with m = alpha / sqrt(`data.length` x `model.language.width`). Image vectors have none.
    """
    pairs: PairsConfig = field(default_factory=PairsConfig)
    """Regularizer over paired records; none by default."""
