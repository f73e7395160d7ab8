"""config.json: old and new ways to say the same, and what is refused."""

from typing import Any

import pytest

from mllm_jax.checkpoints.hf_config import (
    model_type,
    read_language,
    read_llava,
    read_vision,
    write_config,
)
from mllm_jax.errors import ConfigError
from mllm_jax.model_config import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    RopeConfig,
    VisionConfig,
)

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROPE = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, RopeConfig(1e4)),
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, ROPE),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}, ROPE),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, ROPE),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(5e5)),
    ],
)
def test_rotary_positions_in_every_dialect(fields: dict[str, Any], expected: RopeConfig) -> None:
    assert read_language("here", fields).rope == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type='linear'; allowed are default and llama3",
        ),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "without low_freq_factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu' is"),
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"hidden_size": "big"}, "hidden_size='big', expected int"),
    ],
)
def test_another_llama_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_language("here", fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ({"image_size": [336, 336]}, "image_size"),
        ({"num_channels": 1}, "num_channels=1"),
        ({"model_type": "siglip_vision_model"}, "siglip_vision_model"),
    ],
)
def test_another_tower_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_vision("here", fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"text_config": {"model_type": "qwen2"}}, "text_config: model_type='qwen2'"),
    ],
)
def test_another_llava_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_llava("here", {"image_token_index": 5, **fields}, "mlp")


def test_sparse_llava_config_takes_transformers_defaults() -> None:
    # llava-hf/llava-1.5-7b-hf keeps only what differs from the defaults
    text = {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "max_position_embeddings": 4096,
        "model_type": "llama",
    }
    model = read_llava(
        "here", {"text_config": text | {"rms_norm_eps": 1e-5, "vocab_size": 32064}}, "mlp"
    )
    assert model.language == LanguageConfig(
        32064, 4096, 11008, 32, 32, 32, 128, 1e-5, False, 4096, RopeConfig(1e4)
    )
    assert model.vision == VisionConfig()
    assert model.image_token == 32000


def test_written_config_is_read_back() -> None:
    language = LanguageConfig(128, 32, 64, 2, 4, 2, 12, 1e-6, True, 99, ROPE)
    vision = VisionConfig(28, 7, 16, 32, 3, 2, "gelu", 1e-6, -1, 24)
    model = ModelConfig(vision, ConnectorConfig("linear", bias=False), language, 7)
    written = write_config(model, "bfloat16", {"eos_token_id": [1, 2]})
    assert read_llava("here", written, "linear") == model
    assert written["projector_hidden_act"] == "linear"
    assert written["text_config"]["eos_token_id"] == [1, 2]
    assert (
        read_language("here", write_config(ModelConfig(language=language), "float32", {}))
        == language
    )
    only = write_config(ModelConfig(vision=vision), "float32", {})
    assert read_vision("here", only, -1) == vision


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_vl", None])
def test_other_models_are_named(kind: str | None, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"is not supported; supported are llava, llama"):
        model_type(tmp_path, {"model_type": kind})
