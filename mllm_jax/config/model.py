"""What the network is: the sections `vision`, `connector`, `language` of a config."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import Dim, Range, Section
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.image_tokens import ImageLayout, Size, image_layout, pooled_line

# far above the largest models, low enough that a mistyped number is refused before a run begins
Layers = Annotated[int, Range("[1, 10_000]")]
Heads = Annotated[int, Range("[1, 65_536]")]
Pixels = Annotated[int, Range("[1, 16_384]")]
Length = Annotated[int, Range("[1, 134_217_728]")]
Eps = Annotated[float, Range("(0, 1_000]")]
Channel = Annotated[float, Range("[-1_000, 1_000]")]
Deviation = Annotated[float, Range("(0, 1_000]")]
Stretch = Annotated[float, Range("(0, 1_000_000]")]  # factors of rotary frequencies


@dataclass(frozen=True)
class VisionConfig(Section, at="model.vision"):
    """An image tower: CLIP's or SigLIP's, as in CLIPVisionConfig and SiglipVisionConfig.

    Sizes in pixels or units. The defaults are those of CLIP ViT-L/14-336.
    """

    image_size: Pixels = 336
    """Side in pixels of the square that the tower reads; for CLIP a multiple of `patch_size`.

    SigLIP reads whole patches: of 384 pixels in patches of 14 the last 6 are left out.
    """
    patch_size: Pixels = 14
    """Side of a patch in pixels."""
    width: Dim = 1024
    """Width of the hidden states; a multiple of `heads`."""
    mlp: Annotated[int, Range("[1, 8_388_608]")] = 4096
    """Width of the feed-forward layers."""
    layers: Layers = 24
    """Number of transformer layers."""
    heads: Heads = 16
    """Number of attention heads."""
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    """Activation of the feed-forward layers; SigLIP has `gelu_pytorch_tanh`."""
    norm_eps: Eps = 1e-5
    """Epsilon of the layer norms."""
    feature_layer: Annotated[int, Range("[-10_001, 10_000]")] = -2
    """Hidden state that the connector reads; -2 leaves the last layer unused, as LLaVA does."""
    projection: Dim = 768
    """Width of CLIP's joint space. Not used; it makes an exported config equal the imported one."""
    image_mean: tuple[Channel, Channel, Channel] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of each colour channel (0 to 1), which is subtracted from the pixels."""
    image_std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviation of each colour channel (0 to 1), by which pixels are divided."""
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter with which images are resized; published SigLIP 2 processors say `bilinear`."""
    kind: Literal["clip", "siglip"] = "clip"
    """`clip`: class token and a norm before the layers; `siglip`: neither, and a patch bias."""
    pooling_head: bool = False
    """Whether a SigLIP tower has its attention pooling; not used, but carried to exports."""

    def __post_init__(self):
        super().__post_init__()
        location = "model.vision"
        require(
            self.kind == "siglip" or self.image_size % self.patch_size == 0,
            f"{location}.image_size={self.image_size} is not a multiple of "
            f"patch_size={self.patch_size}",
        )
        require(
            self.image_size >= self.patch_size,
            f"{location}.image_size={self.image_size} is below patch_size={self.patch_size}",
        )
        require(
            self.kind == "siglip" or not self.pooling_head,
            f"{location}.pooling_head=true: only a tower with kind: siglip has one; leave it out",
        )
        require(
            self.width % self.heads == 0,
            f"{location}.width={self.width} is not a multiple of heads={self.heads}",
        )
        require(
            -self.layers - 1 <= self.feature_layer <= self.layers,
            f"{location}.feature_layer={self.feature_layer} is outside the tower's {self.layers} "
            f"layers; allowed are {-self.layers - 1}..{self.layers}",
        )

    @property
    def patches(self) -> int:
        """Patches of one square, P: the vectors that the tower gives for it."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Vectors inside of the tower: the patches, and CLIP's class token."""
        return self.patches + (self.kind == "clip")

    @property
    def used_layers(self) -> int:
        """How many of the tower's layers come before the hidden state that the connector reads."""
        chosen = self.feature_layer
        return chosen if chosen >= 0 else self.layers + 1 + chosen


@dataclass(frozen=True)
class ConnectorConfig(Section, at="model.connector"):
    """The bridge between the towers.

    `linear` is one matrix; `mlp` is linear, exact gelu, linear (LLaVA-1.5's mlp2x_gelu).
    """

    kind: Literal["linear", "mlp"] = "linear"
    """`linear`: one matrix; `mlp`: linear, exact gelu, linear."""
    bias: bool = True
    """Whether its layers have a bias."""
    pool: Literal["none", "average", "shuffle"] = "none"
    """What is done to squares of 2 x 2 patches first: a quarter of the tokens, or nothing.

    `average`: their mean; `shuffle`: side by side as one vector of four times the width. The last
    line of an odd side (27 x 27) is repeated. LLaVA's classes cannot hold it: such a model is not
    exported.
    """

    @property
    def stride(self) -> int:
        """Side in patches of the square that becomes one vector."""
        return 1 if self.pool == "none" else 2


@dataclass(frozen=True)
class RopeConfig(Section, at="model.language.rope"):
    """Rotary positions.

    `llama3` stretches the low frequencies as Llama 3.1 does (transformers: modeling_rope_utils).
    """

    theta: Annotated[float, Range("(0, 1_000_000_000_000]")] = 500000.0
    """Base of the rotary frequencies."""
    kind: Literal["default", "llama3"] = "default"
    """`llama3` stretches the low frequencies, as Llama 3.1 does; the options below are for it."""
    factor: Stretch = 8.0
    """How much the low frequencies are stretched."""
    low_freq_factor: Stretch = 1.0
    """Wavelengths above `original_length` divided by this are stretched in full."""
    high_freq_factor: Stretch = 4.0
    """Wavelengths below `original_length` divided by this are left as they are."""
    original_length: Length = 8192
    """Tokens of the context that the model was trained with before the stretch."""

    def __post_init__(self):
        super().__post_init__()
        low, high = self.low_freq_factor, self.high_freq_factor
        require(
            self.kind == "default" or low < high,
            f"{self.at}.low_freq_factor={low} must be below high_freq_factor={high}",
        )


@dataclass(frozen=True)
class LanguageConfig(Section, at="model.language"):
    """A Llama 3 / 3.1 / 3.2 decoder."""

    vocab: Annotated[int, Range("[1, 16_777_216]")] = 128320
    """Rows of the token table, padding rows included."""
    width: Dim = 4096
    """Width of the hidden states."""
    mlp: Annotated[int, Range("[1, 8_388_608]")] = 14336
    """Width of the feed-forward layers."""
    layers: Layers = 32
    """Number of transformer layers."""
    heads: Heads = 32
    """Number of query heads; a multiple of `kv_heads`."""
    kv_heads: Heads = 8
    """Number of key and value heads."""
    head_dim: Annotated[int, Range("[2, 65_536]")] = 128
    """Width of a head; even."""
    norm_eps: Eps = 1e-5
    """Epsilon of the RMS norms."""
    tied: bool = False
    """Whether the output layer is the token table."""
    max_length: Length = 131072
    """Tokens of the longest row that the model is made for."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Rotary positions."""

    def __post_init__(self):
        super().__post_init__()
        location = "model.language"
        require(
            self.heads % self.kv_heads == 0,
            f"{location}.heads={self.heads} is not a multiple of kv_heads={self.kv_heads}",
        )
        require(
            self.head_dim % 2 == 0,
            f"{location}.head_dim={self.head_dim} is odd; rotary positions need an even width",
        )


@dataclass(frozen=True)
class ModelConfig(Section, at="model"):
    """What the network is. A backbone alone (only `vision`, or only `language`) is a model too."""

    vision: VisionConfig | None = None
    """The image tower; none for a model that reads text only."""
    connector: ConnectorConfig | None = None
    """What maps image features into the language model; needed where both parts are there."""
    language: LanguageConfig | None = None
    """The language model; every stage needs one."""
    image_token: Annotated[int, Range("[0, 16_777_216]")] | None = None
    """Id of `<image>` in the tokenizer; needed where there is a connector."""
    grids: GridsConfig | None = None
    """LLaVA-NeXT's tiles for large images; none for LLaVA-1.5, where every image is one square."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.vision is not None or self.language is not None,
            "model: give vision, language, or all three parts",
        )
        if self.vision is not None and self.language is not None:
            require(
                self.connector is not None,
                "model.connector: missing between vision and language; add kind: linear or mlp",
            )
            require(
                self.image_token is not None,
                "model.image_token: missing; give the id of <image> in the tokenizer",
            )
        self._check_grids()
        if self.image_token is not None and self.language is not None:
            require(
                0 <= self.image_token < self.language.vocab,
                f"model.image_token={self.image_token} is outside the {self.language.vocab} rows "
                "of model.language.vocab",
            )

    @property
    def patches(self) -> int:
        """Vectors of one image slot, P; 0 for a model that reads text only."""
        if self.vision is None or self.connector is None:
            return 0
        line = self.vision.image_size // self.vision.patch_size
        return pooled_line(line, self.connector.stride) ** 2

    def image_layout(self, size: Size, images: int = 1) -> ImageLayout:
        """Tiles and placeholders of an image: see `image_tokens.image_layout`.

        Args:
            size: upright height and width in pixels.
            images: how many its conversation has.
        """
        assert self.vision is not None, "the model reads text only"
        shape = self.vision.image_size, self.vision.patch_size
        pool = self.connector.stride if self.connector is not None else 1
        return image_layout(size, *shape, self.grids, images, pool)

    def _check_grids(self) -> None:
        if self.grids is None:
            return
        require(
            self.vision is not None and self.connector is not None,
            "model.grids has no effect without vision and connector; leave it out",
        )
        assert self.vision is not None and self.connector is not None
        require(
            self.connector.pool == "none",
            f"model.connector.pool={self.connector.pool} does not go with model.grids, whose tiles "
            "are counted in patches; leave one out",
        )
        side = self.vision.image_size
        for size in self.grids.sizes:
            require(
                size[0] % side == 0 and size[1] % side == 0,
                f"model.grids.sizes: {list(size)} is not a multiple of model.vision.image_size="
                f"{side} in both directions",
            )
