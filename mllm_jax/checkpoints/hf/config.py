"""Hugging Face's `config.json` -> ModelConfig. What we would compute differently is refused.

Defaults are those of transformers' CLIPVisionConfig, SiglipVisionConfig, LlamaConfig and
LlavaConfig, since older configs leave them out. Two fields for one fact must agree, unless both
transformers 4 and 5 take the same one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from mllm_jax.checkpoints.hf.rope import read_rope
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.fields import Fields
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

ConnectorKind = Literal["linear", "mlp"]
TowerKind = Literal["clip", "siglip"]
# image towers, alone or with a text half
TOWERS: dict[str, TowerKind] = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
}
# whether the first vector of a tower, CLIP's class token, is left out
STRATEGIES: dict[TowerKind, str] = {"clip": "default", "siglip": "full"}
# with mm_projector_type; transformers' own "llava" has text_config
ORIGINAL_LLAVA = ("llava_llama", "llava")
SUPPORTED = f"llava, llava_next, llama, original LLaVA, {', '.join(TOWERS)}"
LLAVA_VISION = {  # LlavaConfig's and LlavaNextConfig's own default tower, CLIP ViT-L/14-336
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
# Largest sizes of a config, far above any model that is known: what is built from them stays small.
LAYERS, HEADS, WIDTH, VOCAB, PIXELS = 10_000, 2**16, 2**20, 2**24, 2**14
EPS = (0.0, 1.0)  # bounds of a norm's epsilon
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")  # of a tower

C = TypeVar("C")


def is_original(config: dict[str, Any]) -> bool:
    """Whether this is a config of the original LLaVA code."""
    return config.get("model_type") in ORIGINAL_LLAVA and (
        "mm_projector_type" in config or "mm_vision_tower" in config
    )


def model_type(folder: Path, config: dict[str, Any]) -> str:
    """One of "llava", "llava_next", "llama", "tower", "original".

    Raises:
        ConfigError: any other model, or quantised weights.
    """
    where = folder / "config.json"
    kind = config.get("model_type")
    require(
        config.get("quantization_config") is None,
        f"{where}: quantization_config is set: quantised weights are not read; "
        "save the folder dequantised with transformers (model.dequantize())",
    )
    if is_original(config):
        return "original"
    if kind in ("llava", "llava_next", "llama"):
        return kind
    if kind in TOWERS:
        return "tower"
    raise ConfigError(
        f"{where}: model_type={quoted(kind)} is not supported; supported are {SUPPORTED}"
    )


def tower_section(where: str, config: dict[str, Any]) -> dict[str, Any]:
    """The section of a tower's config, alone or with a text half, that says what the tower is.

    Older CLIP configs also have `vision_config_dict`, which transformers lets replace the other:
    both must describe one tower.
    """
    kind = config.get("model_type", "clip")
    if kind.endswith("_vision_model"):
        return config
    get = Fields(where, config)
    vision, old = (get.section(name, {}).tree for name in ("vision_config", "vision_config_dict"))
    if not old:
        return {"model_type": f"{kind}_vision_model"} | vision
    if vision:
        towers = [read_vision(f"{where} vision_config", section) for section in (vision, old)]
        require(
            towers[0] == towers[1],
            f"{where}: vision_config and vision_config_dict contradict each other; "
            "remove vision_config_dict if vision_config is right",
        )
    return vision or old


def read_vision(where: str, config: Any, feature_layer: int = -2, **processor: Any) -> VisionConfig:
    """A CLIPVisionConfig or SiglipVisionConfig as ours; `processor` is what `read_processor` gives.

    Raises:
        ConfigError: what we would compute differently.
    """
    get = Fields(where, config)
    kind = read_tower_kind(get)
    siglip = kind == "siglip"
    get.expect("num_channels", 3)
    own: dict[str, Any] = (
        {"pooling_head": get.flag("vision_use_head", True)}
        if siglip
        else {"projection": get.whole("projection_dim", 512, 1, WIDTH)}
    )
    return _checked(
        where,
        VisionConfig,
        kind=kind,
        image_size=read_image_size(get, 224),
        patch_size=get.whole("patch_size", 16 if siglip else 32, 1, PIXELS),
        width=get.whole("hidden_size", 768, 1, WIDTH),
        mlp=get.whole("intermediate_size", 3072, 1, WIDTH),
        layers=get.whole("num_hidden_layers", 12, 1, LAYERS),
        heads=get.whole("num_attention_heads", 12, 1, HEADS),
        activation=get.choice(
            "hidden_act", "gelu_pytorch_tanh" if siglip else "quick_gelu", *ACTIVATIONS
        ),
        norm_eps=get.number("layer_norm_eps", 1e-6 if siglip else 1e-5, *EPS),
        feature_layer=feature_layer,
        **own,
        **processor,
    )


def read_tower_kind(get: Fields) -> TowerKind:
    """Which tower a vision section describes; CLIP's where it does not say."""
    names = [name for name in TOWERS if name.endswith("_vision_model")]
    return TOWERS[get.choice("model_type", names[0], *names)]


def read_image_size(get: Fields, default: int) -> int:
    """Side of the square that the tower reads, in pixels."""
    return get.whole("image_size", default, 1, PIXELS)


def read_language(where: str, config: Any, tied: bool | None = None) -> LanguageConfig:
    """A LlamaConfig as ours.

    Raises:
        ConfigError: biases, other activations and other rotary scalings.
    """
    get = Fields(where, config)
    get.expect("model_type", "llama")
    get.expect("hidden_act", "silu")
    get.expect("attention_bias", False)
    get.expect("mlp_bias", False)
    width = get.whole("hidden_size", 4096, 1, WIDTH)
    heads = get.whole("num_attention_heads", 32, 1, HEADS)
    stored_tied = get.flag("tie_word_embeddings", False)
    return _checked(
        where,
        LanguageConfig,
        vocab=get.whole("vocab_size", 32000, 1, VOCAB),
        width=width,
        mlp=get.whole("intermediate_size", 11008, 1, WIDTH),
        layers=get.whole("num_hidden_layers", 32, 1, LAYERS),
        heads=heads,
        kv_heads=get.whole("num_key_value_heads", heads, 1, HEADS),
        head_dim=get.whole("head_dim", width // heads, 1, WIDTH),
        norm_eps=get.number("rms_norm_eps", 1e-6, *EPS),
        tied=stored_tied if tied is None else tied,
        max_length=get.whole("max_position_embeddings", 2048, 1),
        rope=read_rope(get),
    )


def read_llava(
    where: str,
    config: dict[str, Any],
    kind: ConnectorKind,
    grids: GridsConfig | None = None,
    **processor: Any,
) -> ModelConfig:
    """A LlavaConfig or LlavaNextConfig as ours.

    Args:
        where: the file, for messages.
        config: its tree.
        kind: what the projector's tensors showed it to be.
        grids: LLaVA-NeXT's canvases, from `grids.read_grids`.
        processor: what `read_processor` gives.

    Raises:
        ConfigError: what we would compute differently.
    """
    get = Fields(where, config)
    layer = get.whole("vision_feature_layer", -2, -LAYERS, LAYERS)
    text, section = get.section("text_config", {}), get.section("vision_config", LLAVA_VISION)
    vision = read_vision(section.location, section.tree, layer, **processor)
    check_strategy(get, vision.kind, "default")
    language = read_language(text.location, text.tree, _read_tied(get, text))
    return _checked(
        where,
        ModelConfig,
        vision=vision,
        connector=ConnectorConfig(kind=kind, bias=get.flag("multimodal_projector_bias", True)),
        language=language,
        image_token=_read_image_token(get),
        grids=grids,
    )


def check_strategy(get: Fields, kind: TowerKind, default: str) -> None:
    """Refuses to leave out the first patch of SigLIP, or to keep the class token of CLIP.

    Args:
        get: a config or a processor.
        kind: of the tower.
        default: what transformers takes where the field is absent.
    """
    name = "vision_feature_select_strategy"
    value, right = get.text(name, default), STRATEGIES[kind]
    if value != right:
        reason = "CLIP's class token is left out" if kind == "clip" else "SigLIP has no class token"
        get.refuse(name, value, f"{right}: {reason}")


def _read_image_token(get: Fields) -> int:
    """transformers 5 takes image_token_id where both names are there, 4 image_token_index."""
    names = ("image_token_id", "image_token_index")
    ids = [get.whole(name, None, 0, VOCAB) for name in names]
    stored = [i for i in ids if i is not None]
    require(
        len(set(stored)) < 2,
        f"{get.location}: image_token_id={ids[0]} and image_token_index={ids[1]} contradict each "
        "other; remove the wrong one",
    )
    return stored[0] if stored else 32000


def _read_tied(get: Fields, text: Fields) -> bool:
    """Whether the head is the token table: either place may say so.

    Where only the outer one does, transformers 5 ties and 4 asks the text config.
    """
    outer, inner = (section.flag("tie_word_embeddings", None) for section in (get, text))
    require(
        not (outer is True and inner is False),
        f"{get.location}: tie_word_embeddings=true contradicts the false of text_config; "
        "set both to what the weights are",
    )
    return bool(outer or inner)


def _checked(where: str, section: Callable[..., C], **values: Any) -> C:
    """A config section; what it refuses itself names the file as well."""
    try:
        return section(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
