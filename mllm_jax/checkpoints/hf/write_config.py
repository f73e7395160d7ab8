"""ModelConfig -> Hugging Face's `config.json`, in the words of transformers 4 and 5 at once."""

from collections.abc import Mapping
from typing import Any

from mllm_jax.checkpoints.hf.config import STRATEGIES
from mllm_jax.checkpoints.hf.connector_form import Form, choose_form
from mllm_jax.checkpoints.hf.grids import write_grids
from mllm_jax.checkpoints.hf.rope import write_rope
from mllm_jax.config.model import LanguageConfig, ModelConfig, VisionConfig

# What training alone or nobody uses: a source's own values take their place.
INERT_TEXT = {"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True}
INERT_CLIP = {"attention_dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02}
INERT_SIGLIP = {"attention_dropout": 0.0}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_config(
    model: ModelConfig,
    dtype: str,
    ids: Mapping[str, Any],
    carried: Mapping[str, Mapping[str, Any]] | None = None,
    form: Form | None = None,
) -> dict[str, Any]:
    """`config.json` for stock transformers: LLaVA(-NeXT), Llama or a tower by `model`'s parts.

    Args:
        model: what the network is.
        dtype: number format of the stored tensors.
        ids: bos_token_id, eos_token_id, pad_token_id of the text model.
        carried: fields of the source's config that nothing here reads, by section ("outer",
            "text_config", "vision_config").
        form: in which a linear connector is stored.
    """
    stored = {"dtype": dtype, "torch_dtype": dtype}  # the second for transformers before 4.56
    outer, text, vision = (
        dict((carried or {}).get(name, {})) for name in ("outer", "text_config", "vision_config")
    )
    if model.vision is not None:
        clip = model.vision.kind == "clip"
        inert = INERT_CLIP if clip else INERT_SIGLIP
        vision = {**inert, **vision, **vision_fields(model.vision)}
        if model.language is None:
            name = "CLIPVisionModel" if clip else "SiglipVisionModel"
            return {"architectures": [name], **vision, **stored}
    assert model.language is not None
    text = {**INERT_TEXT, **text, **text_fields(model.language, ids)}
    if model.vision is None:
        return {"architectures": ["LlamaForCausalLM"], **text, **stored}
    return {
        **outer,
        "architectures": [architecture(model)],
        **outer_fields(model, form),
        "text_config": text,
        "vision_config": vision,
        **stored,
    }


def architecture(model: ModelConfig) -> str:
    """The class of transformers that a model with all three parts opens in."""
    next_ = "" if model.grids is None else "Next"
    return f"Llava{next_}ForConditionalGeneration"


def outer_fields(model: ModelConfig, form: Form | None = None) -> dict[str, Any]:
    """What LlavaConfig or LlavaNextConfig says around its two sections.

    `form` is that of a linear connector.
    """
    assert model.vision is not None and model.connector is not None and model.language is not None
    return {
        "model_type": "llava" if model.grids is None else "llava_next",
        "image_token_index": model.image_token,
        "image_seq_length": model.patches,
        "multimodal_projector_bias": model.connector.bias,
        "projector_hidden_act": choose_form(model, form) or "gelu",
        "vision_feature_layer": model.vision.feature_layer,
        "vision_feature_select_strategy": STRATEGIES[model.vision.kind],
        "tie_word_embeddings": model.language.tied,
        **(write_grids(model.grids) if model.grids is not None else {}),
    }


def vision_fields(vision: VisionConfig) -> dict[str, Any]:
    """A CLIPVisionConfig or SiglipVisionConfig."""
    if vision.kind == "clip":
        own = {"model_type": "clip_vision_model", "projection_dim": vision.projection}
    else:
        own = {"model_type": "siglip_vision_model", "vision_use_head": vision.pooling_head}
    return {
        **own,
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.activation,
        "layer_norm_eps": vision.norm_eps,
    }


def text_fields(language: LanguageConfig, ids: Mapping[str, Any]) -> dict[str, Any]:
    """A LlamaConfig."""
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
        **write_rope(language.rope),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": language.tied,
        **{name: ids.get(name) for name in IDS},
    }
