"""config.json: old and new ways to say the same, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints.hf.config import (
    model_type,
    read_language,
    read_llava,
    read_vision,
    tower_section,
)
from mllm_jax.checkpoints.hf.write_config import write_config
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    RopeConfig,
    VisionConfig,
)

ROPE = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu' is"),
        ({"model_type": "mistral"}, "model_type='mistral'"),
        (
            {"num_hidden_layers": 10**7},
            "num_hidden_layers=10000000; expected a",
        ),
        ({"num_hidden_layers": 3.0}, "num_hidden_layers=3.0; expected a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads=0; expected a whole number from 1"),
        ({"num_key_value_heads": 5}, "heads=32 is not a multiple of kv_heads=5"),
        ({"vocab_size": -1}, "vocab_size=-1"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5'; expected a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan; expected a number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; expected true or false"),
        ({"hidden_size": "big"}, "hidden_size='big'; expected a whole number from 1 to 1048576"),
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
        ({"image_size": 225}, "here: model.vision.image_size=225 is not a multiple"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps=inf"),
        ({"projection_dim": "x"}, "projection_dim='x'"),
        ({"num_channels": 1}, "num_channels=1"),
        ({"model_type": "siglip2_vision_model"}, "siglip2_vision_model"),
        ({"model_type": "siglip_vision_model", "vision_use_head": 1}, "vision_use_head=1"),
        ({"model_type": "siglip_vision_model", "patch_size": [16, 16]}, "patch_size="),
        (
            {"model_type": "siglip_vision_model", "image_size": 8},
            "image_size=8 is below patch_size",
        ),
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
        ({"text_config": []}, r"text_config=\[\]; expected an object"),
        (
            {"vision_feature_layer": 99},
            "here vision_config: model.vision.feature_layer=99",
        ),
        ({"image_token_id": 7}, "image_token_id=7 and image_token_index=5 contradict each other"),
        ({"image_token_index": 10**6}, "here: model.image_token=1000000 is outside"),
        (
            {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}},
            "tie_word_embeddings=true contradicts the false of text_config",
        ),
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


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [(None, None, False), (True, None, True), (None, True, True), (False, True, True)],
)
def test_either_place_ties_the_head(outer: bool | None, inner: bool | None, tied: bool) -> None:
    fields: dict[str, Any] = {"image_token_index": 5}
    fields |= {"tie_word_embeddings": outer, "text_config": {"tie_word_embeddings": inner}}
    language = read_llava("here", fields, "mlp").language
    assert language is not None
    assert language.tied == tied


def test_image_token_under_either_name() -> None:
    for name in ("image_token_id", "image_token_index"):
        assert read_llava("here", {name: 5}, "mlp").image_token == 5
    assert read_llava("here", {"image_token_id": 5, "image_token_index": 5}, "mlp").image_token == 5


def test_defaults_are_transformers_own() -> None:
    transformers = pytest.importorskip("transformers")
    for written in (transformers.LlamaConfig(), transformers.LlamaConfig(hidden_size=64)):
        fields = {} if written.hidden_size == 4096 else {"hidden_size": 64}
        assert read_language("here", fields) == read_language("here", written.to_dict())
    written = transformers.CLIPVisionConfig().to_dict()
    assert read_vision("here", {}) == read_vision("here", written)
    assert read_vision("here", {}).norm_eps == written["layer_norm_eps"]
    written = transformers.LlavaConfig().to_dict()
    ours = read_llava("here", {"image_token_index": 31_999}, "mlp")
    written["image_token_index"] = 31_999  # the default is outside of its default vocabulary
    assert ours == read_llava("here", written, "mlp")


def test_a_clip_config_with_two_towers() -> None:
    """vision_config_dict replaces vision_config in transformers: they must describe one tower."""
    tower = {"hidden_size": 96, "num_attention_heads": 4}
    both = {"model_type": "clip", "vision_config_dict": tower}
    assert tower_section("here", both) == tower
    full = tower | {"hidden_act": "quick_gelu", "image_size": 224}
    assert tower_section("here", both | {"vision_config": full}) == full
    other = both | {"vision_config": full | {"hidden_act": "gelu"}}
    with pytest.raises(ConfigError, match="vision_config and vision_config_dict contradict"):
        tower_section("here", other)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization_config is set"):
        model_type(tmp_path, {"model_type": "llama", "quantization_config": {"bits": 4}})


def test_written_config_is_read_back() -> None:
    language = LanguageConfig(128, 32, 64, 2, 4, 2, 12, 1e-6, True, 99, ROPE)
    vision = VisionConfig(28, 7, 16, 32, 3, 2, "gelu", 1e-6, -1, 24)
    model = ModelConfig(vision, ConnectorConfig("linear", bias=False), language, 7)
    written = write_config(model, "bfloat16", {"eos_token_id": [1, 2]})
    assert read_llava("here", written, "linear") == model
    assert written["projector_hidden_act"] == "gelu"
    linear = write_config(model, "bfloat16", {}, form="linear")
    assert linear["projector_hidden_act"] == "linear"
    assert (written["dtype"], written["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert (written["tie_word_embeddings"], written["image_seq_length"]) == (True, 16)
    mlp = ModelConfig(vision, ConnectorConfig("mlp"), language, 7)
    assert write_config(mlp, "bfloat16", {})["projector_hidden_act"] == "gelu"
    assert written["text_config"]["eos_token_id"] == [1, 2]
    assert (
        read_language("here", write_config(ModelConfig(language=language), "float32", {}))
        == language
    )
    only = write_config(ModelConfig(vision=vision), "float32", {})
    assert read_vision("here", only, -1) == vision


@pytest.mark.parametrize("kind", ["llava_onevision", "qwen2_vl", None])
def test_other_models_are_named(kind: str | None, tmp_path) -> None:
    with pytest.raises(
        ConfigError, match=r"is not supported; supported are llava, llava_next, llama"
    ):
        model_type(tmp_path, {"model_type": kind})
