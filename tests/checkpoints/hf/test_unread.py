"""Fields of config.json that nothing reads: kept by section, through training to the export."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints.hf.unread import UNREAD, listed, read_unread, write_unread
from mllm_jax.checkpoints.hf.write_config import write_config
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

FULL = ModelConfig(VisionConfig(), ConnectorConfig(), LanguageConfig(), 5)
EMPTY = {"outer": {}, "text_config": {}, "vision_config": {}}


def put(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_an_export_writes_is_read(tmp_path: Path) -> None:
    """So a second conversion carries nothing but the fields that only training uses."""
    fields = read_unread(put(tmp_path, write_config(FULL, "float32", {})))
    assert fields == {
        "outer": {},
        "text_config": {"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True},
        "vision_config": {
            "attention_dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02,
        },
    }  # fmt: skip
    assert listed(fields) == []


def test_unread_fields_travel_by_section(tmp_path: Path) -> None:
    config = write_config(FULL, "float32", {})
    config |= {"new": 1, "_name_or_path": "x", "auto_map": {}, "transformers_version": "4.40"}
    config["text_config"] |= {"attention_dropout": 0.1, "pretraining_tp": 2}
    config["vision_config"] |= {"dropout": 0.2}
    fields = read_unread(put(tmp_path, config))
    assert listed(fields) == [
        "outer.new=1", "text_config.attention_dropout=0.1", "vision_config.dropout=0.2",
    ]  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    write_unread(model, fields)
    written = write_config(FULL, "bfloat16", {}, read_unread(model))
    assert written["new"] == 1
    assert "_name_or_path" not in written and "auto_map" not in written
    assert written["text_config"]["attention_dropout"] == 0.1
    assert written["text_config"]["pretraining_tp"] == 2
    assert written["vision_config"]["dropout"] == 0.2
    assert written["dtype"] == "bfloat16"


def test_backbones_alone(tmp_path: Path) -> None:
    text = {"model_type": "llama", "attention_dropout": 0.1, "hidden_size": 64}
    assert read_unread(put(tmp_path, text)) == EMPTY | {"text_config": {"attention_dropout": 0.1}}
    clip = {"model_type": "clip", "logit_scale_init_value": 2.6, "vision_config": {"dropout": 0.5}}
    assert read_unread(put(tmp_path, clip)) == EMPTY | {"vision_config": {"dropout": 0.5}}
    only = {"model_type": "clip_vision_model", "dropout": 0.5, "hidden_size": 48}
    assert read_unread(put(tmp_path, only)) == EMPTY | {"vision_config": {"dropout": 0.5}}


def test_no_file_without_fields(tmp_path: Path) -> None:
    write_unread(tmp_path, EMPTY)
    assert list(tmp_path.iterdir()) == []
    assert read_unread(tmp_path) == EMPTY


def test_odd_files(tmp_path: Path) -> None:
    put(tmp_path, {"model_type": "llama", "new": [float("nan")]})
    with pytest.raises(ConfigError, match=r"config\.json: holds NaN"):
        read_unread(tmp_path)
    (tmp_path / UNREAD).write_text('{"text_config": [1]}')
    with pytest.raises(ConfigError, match=rf"{UNREAD}: text_config=\[1\]; expected an object"):
        read_unread(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_dropout": "x"},
        {"attention_dropout": -1},
        {"initializer_range": [1]},
        {"use_cache": 1},
        {"pretraining_tp": 1.5},
        {"dtype": 32},
        {"architectures": "LlamaForCausalLM"},
    ],
)
def test_known_fields_have_types_although_nothing_uses_them(tmp_path: Path, fields: dict) -> None:
    config = write_config(FULL, "float32", {})
    name = next(iter(fields))
    for place, section in (("", config), (" text_config", config["text_config"])):
        before = dict(section)
        section |= fields
        with pytest.raises(ConfigError, match=rf"config\.json{place}: {name}="):
            read_unread(put(tmp_path, config))
        section.clear()
        section |= before
