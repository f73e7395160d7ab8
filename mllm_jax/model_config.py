"""What the network is: the sections `vision`, `connector`, `language` of a config. Ground floor."""

from dataclasses import dataclass, field
from typing import Literal

from mllm_jax.errors import require
from mllm_jax.image_tokens import image_tokens


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's image tower, as in Hugging Face's CLIPVisionConfig. Sizes in pixels or units."""

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    mlp: int = 4096
    layers: int = 24
    heads: int = 16
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5
    # which hidden state the connector reads; -2 leaves the last layer unused, as LLaVA does
    feature_layer: int = -2
    # CLIP's joint space: unused here, kept so that an exported config is the imported one
    projection: int = 768
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        where = "model.vision"
        require(
            self.patch_size > 0 and self.image_size % self.patch_size == 0,
            f"{where}.image_size={self.image_size} is not a multiple of "
            f"patch_size={self.patch_size}",
        )
        require(
            self.heads > 0 and self.width % self.heads == 0,
            f"{where}.width={self.width} is not a multiple of heads={self.heads}",
        )
        require(
            -self.layers - 1 <= self.feature_layer <= self.layers,
            f"{where}.feature_layer={self.feature_layer} is outside the tower's {self.layers} "
            f"layers; allowed are {-self.layers - 1}..{self.layers}",
        )

    @property
    def patches(self) -> int:
        """Patches of one image, P: also the number of seats an image takes in a row."""
        square = (self.image_size, self.image_size)
        return image_tokens(square, self.image_size, self.patch_size)

    @property
    def used_layers(self) -> int:
        """How many of the tower's layers stand before the hidden state that the connector reads."""
        chosen = self.feature_layer
        return chosen if chosen >= 0 else self.layers + 1 + chosen


@dataclass(frozen=True)
class ConnectorConfig:
    """The bridge between the towers.

    `linear` is one matrix; `mlp` is linear, exact gelu, linear (LLaVA-1.5's mlp2x_gelu).
    """

    kind: Literal["linear", "mlp"] = "linear"
    bias: bool = True


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions.

    `llama3` stretches the low frequencies as Llama 3.1 does (transformers: modeling_rope_utils).
    """

    theta: float = 500000.0
    kind: Literal["default", "llama3"] = "default"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class LanguageConfig:
    """A Llama 3 / 3.1 / 3.2 decoder."""

    vocab: int = 128320  # rows of the embedding table, padding rows included
    width: int = 4096
    mlp: int = 14336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    norm_eps: float = 1e-5
    tied: bool = False
    max_length: int = 131072
    rope: RopeConfig = field(default_factory=RopeConfig)

    def __post_init__(self):
        where = "model.language"
        require(
            self.kv_heads > 0 and self.heads % self.kv_heads == 0,
            f"{where}.heads={self.heads} is not a multiple of kv_heads={self.kv_heads}",
        )
        require(
            self.head_dim % 2 == 0,
            f"{where}.head_dim={self.head_dim} is odd; rotary positions need an even width",
        )
        for name in ("vocab", "width", "mlp", "layers", "max_length"):
            require(
                getattr(self, name) > 0, f"{where}.{name}={getattr(self, name)} must be positive"
            )


@dataclass(frozen=True)
class ModelConfig:
    """What the network is. A backbone alone (only `vision`, or only `language`) is a model too."""

    vision: VisionConfig | None = None
    connector: ConnectorConfig | None = None
    language: LanguageConfig | None = None
    image_token: int | None = None  # id of <image> in the tokenizer

    def __post_init__(self):
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
        if self.image_token is not None and self.language is not None:
            require(
                0 <= self.image_token < self.language.vocab,
                f"model.image_token={self.image_token} is outside the {self.language.vocab} rows "
                "of model.language.vocab",
            )

    @property
    def patches(self) -> int:
        """Seats of one image in a row; 0 for a model that reads text only."""
        return self.vision.patches if self.vision is not None and self.connector is not None else 0
