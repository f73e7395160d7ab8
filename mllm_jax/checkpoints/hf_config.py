"""Hugging Face's `config.json` <-> ModelConfig. What we would compute differently is refused.

Defaults are those of transformers' CLIPVisionConfig, LlamaConfig and LlavaConfig, since older
configs leave them out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mllm_jax.errors import ConfigError, require
from mllm_jax.model_config import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    RopeConfig,
    VisionConfig,
)

ConnectorKind = Literal["linear", "mlp"]
CLIP_TYPES = ("clip", "clip_vision_model")
# with mm_projector_type; transformers' own "llava" has text_config
ORIGINAL_LLAVA = ("llava_llama", "llava")
SUPPORTED = "llava, llama, clip_vision_model, clip and original LLaVA"
_LLAVA_VISION = {  # LlavaConfig's own default tower, CLIP ViT-L/14-336
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def is_original(config: dict[str, Any]) -> bool:
    """Whether this is a config of the original LLaVA code."""
    return config.get("model_type") in ORIGINAL_LLAVA and (
        "mm_projector_type" in config or "mm_vision_tower" in config
    )


def read_vision(
    where: str, config: dict[str, Any], feature_layer: int = -2, **processor: Any
) -> VisionConfig:
    """A CLIPVisionConfig as ours; `processor` may bring image_mean and image_std.

    Raises:
        ConfigError: what we would compute differently.
    """
    get = _Fields(where, config)
    get.expect("model_type", "clip_vision_model")
    get.expect("num_channels", 3)
    image_size, patch_size = get("image_size", 224), get("patch_size", 32)
    for name, value in (("image_size", image_size), ("patch_size", patch_size)):
        require(
            type(value) is int,
            f"{where}: {name}={value!r} must be one whole number (square images)",
        )
    activation = get("hidden_act", "quick_gelu")
    require(
        activation in ("quick_gelu", "gelu"),
        f"{where}: hidden_act={activation!r}; allowed are quick_gelu and gelu",
    )
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=get("hidden_size", 768),
        mlp=get("intermediate_size", 3072),
        layers=get("num_hidden_layers", 12),
        heads=get("num_attention_heads", 12),
        activation=activation,
        norm_eps=float(get("layer_norm_eps", 1e-5)),
        feature_layer=feature_layer,
        projection=get("projection_dim", 512),
        **processor,
    )


def read_language(where: str, config: dict[str, Any], tied: bool | None = None) -> LanguageConfig:
    """A LlamaConfig as ours.

    Raises:
        ConfigError: biases, other activations and other rotary scalings.
    """
    get = _Fields(where, config)
    get.expect("model_type", "llama")
    get.expect("hidden_act", "silu")
    get.expect("attention_bias", False)
    get.expect("mlp_bias", False)
    width, heads = get("hidden_size", 4096), get("num_attention_heads", 32)
    return LanguageConfig(
        vocab=get("vocab_size", 32000),
        width=width,
        mlp=get("intermediate_size", 11008),
        layers=get("num_hidden_layers", 32),
        heads=heads,
        kv_heads=get("num_key_value_heads", heads),
        head_dim=get("head_dim", width // heads),
        norm_eps=float(get("rms_norm_eps", 1e-6)),
        tied=bool(get("tie_word_embeddings", False)) if tied is None else tied,
        max_length=get("max_position_embeddings", 2048),
        rope=_read_rope(where, config),
    )


def _read_rope(where: str, config: dict[str, Any]) -> RopeConfig:
    """Rotary settings of any version.

    transformers 5 writes `rope_parameters`; before, it was `rope_theta` and `rope_scaling` (with
    `type` or `rope_type`).
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = float(
        rope.get("rope_theta")
        or (config.get("rope_parameters") or {}).get("rope_theta")
        or config.get("rope_theta")
        or 10000.0
    )
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(
        kind in ("default", "llama3"),
        f"{where}: rope_type={kind!r}; allowed are default and llama3",
    )
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    require(
        partial in (None, 1, 1.0),
        f"{where}: partial_rotary_factor={partial!r}; only whole heads are rotated here",
    )
    if kind == "default":
        return RopeConfig(theta=theta)
    needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in needed if rope.get(name) is None]
    require(not missing, f"{where}: rope_type=llama3 without {', '.join(missing)}")
    return RopeConfig(
        theta,
        "llama3",
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope[needed[3]]),
    )


def read_llava(
    where: str, config: dict[str, Any], kind: ConnectorKind, **processor: Any
) -> ModelConfig:
    """A LlavaConfig as ours; `kind` is what the projector's tensors showed it to be.

    Raises:
        ConfigError: what we would compute differently.
    """
    get = _Fields(where, config)
    strategy = get("vision_feature_select_strategy", "default")
    require(
        strategy == "default",
        f"{where}: vision_feature_select_strategy={strategy!r}; only 'default' (no class token) is "
        "supported",
    )
    layer = get("vision_feature_layer", -2)
    require(
        type(layer) is int,
        f"{where}: vision_feature_layer={layer!r}; only one layer, a whole number, is supported",
    )
    text, vision = get("text_config", {}), get("vision_config", _LLAVA_VISION)
    tied = bool(get("tie_word_embeddings", False) or text.get("tie_word_embeddings") or False)
    return ModelConfig(
        vision=read_vision(f"{where} vision_config", vision, layer, **processor),
        connector=ConnectorConfig(kind=kind, bias=get("multimodal_projector_bias", True)),
        language=read_language(f"{where} text_config", text, tied),
        image_token=get("image_token_index", config.get("image_token_id", 32000)),
    )


def write_config(model: ModelConfig, dtype: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` for stock transformers: LLaVA, Llama or CLIP by the parts that `model` has.

    Args:
        model: what the network is.
        dtype: number format of the stored tensors.
        ids: bos_token_id, eos_token_id, pad_token_id of the text model.
    """
    stored = {"dtype": dtype, "torch_dtype": dtype}  # the second for transformers before 4.56
    if model.language is None:
        assert model.vision is not None
        return {"architectures": ["CLIPVisionModel"], **_vision_dict(model.vision), **stored}
    text = _language_dict(model.language, ids)
    if model.vision is None:
        return {"architectures": ["LlamaForCausalLM"], **text, **stored}
    assert model.connector is not None
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": model.image_token,
        "image_seq_length": model.patches,
        "multimodal_projector_bias": model.connector.bias,
        "projector_hidden_act": "linear" if model.connector.kind == "linear" else "gelu",
        "vision_feature_layer": model.vision.feature_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": model.language.tied,
        "text_config": text,
        "vision_config": _vision_dict(model.vision),
        **stored,
    }


def _vision_dict(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.activation,
        "layer_norm_eps": vision.norm_eps,
        "projection_dim": vision.projection,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
    }


def _language_dict(language: LanguageConfig, ids: Mapping[str, Any]) -> dict[str, Any]:
    scaling = None
    if language.rope.kind == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": language.rope.factor,
            "low_freq_factor": language.rope.low_freq_factor,
            "high_freq_factor": language.rope.high_freq_factor,
            "original_max_position_embeddings": language.rope.original_length,
        }
    return {
        "model_type": "llama",
        "vocab_size": language.vocab,
        "hidden_size": language.width,
        "intermediate_size": language.mlp,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": language.norm_eps,
        "max_position_embeddings": language.max_length,
        "rope_parameters": {
            "rope_theta": language.rope.theta,
            **(scaling or {"rope_type": "default"}),
        },
        "rope_theta": language.rope.theta,  # this and the next: for transformers 4
        "rope_scaling": scaling,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": language.tied,
        "use_cache": True,
        **{name: ids.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


_CHECKED_BY_READER = ("image_size", "patch_size", "vision_feature_layer")  # lists in some configs


class _Fields:
    """Reads fields of one section; null counts as absent, as in transformers."""

    def __init__(self, where: str, config: Any):
        require(
            isinstance(config, dict), f"{where}: expected an object, found {type(config).__name__}"
        )
        self.where, self.config = where, config

    def __call__(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        if value is None:
            return default
        if name not in _CHECKED_BY_READER and not isinstance(default, float):
            expected = type(default).__name__
            require(
                type(value) is type(default), f"{self.where}: {name}={value!r}, expected {expected}"
            )
        return value

    def expect(self, name: str, allowed: Any) -> None:
        value = self(name, allowed)
        said = f"{self.where}: {name}={value!r} is not supported; only {allowed!r} is"
        require(value == allowed, said)


def model_type(folder: Path, config: dict[str, Any]) -> str:
    """One of "llava", "llama", "clip", "original". Raises ConfigError for any other model."""
    kind = config.get("model_type")
    if is_original(config):
        return "original"
    if kind in ("llava", "llama"):
        return kind
    if kind in CLIP_TYPES:
        return "clip"
    raise ConfigError(
        f"{folder / 'config.json'}: model_type={kind!r} is not supported; supported are {SUPPORTED}"
    )
