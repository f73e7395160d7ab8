"""Processor, template and tokenizer files."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints import hf_files
from mllm_jax.errors import ConfigError

CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "resample": 3}
CLIP |= {
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [1, 1, 1],
}


def put(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("nested", [True, False])
def test_processor_of_both_generations(tmp_path: Path, nested: bool) -> None:
    put(tmp_path, "preprocessor_config.json", {**CLIP, "image_mean": [9, 9, 9]} if nested else CLIP)
    put(
        tmp_path,
        "processor_config.json",
        {"patch_size": 7, **({"image_processor": CLIP} if nested else {})},
    )
    stats, fit = hf_files.read_processor(tmp_path, 28)
    assert stats == {"image_mean": (0.1, 0.2, 0.3), "image_std": (1.0, 1.0, 1.0)}
    assert fit == "crop"


def test_old_sizes_and_padding(tmp_path: Path) -> None:
    put(
        tmp_path,
        "preprocessor_config.json",
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 28},
    )
    assert hf_files.read_processor(tmp_path, 28) == ({}, "crop")
    put(
        tmp_path,
        "preprocessor_config.json",
        {**CLIP, "image_processor_type": "LlavaImageProcessorFast", "do_pad": True},
    )
    assert hf_files.read_processor(tmp_path, 28)[1] == "pad"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "resample=2; only 3"),
        ({"do_center_crop": False}, "do_center_crop=False"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0"),
        ({"size": {"height": 28, "width": 28}}, "size="),
        ({"size": {"shortest_edge": 32}}, "does not fit the vision tower's image_size=28"),
        ({"crop_size": {"height": 28, "width": 32}}, "crop_size="),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
    ],
)
def test_another_processor_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    put(tmp_path, "preprocessor_config.json", {**CLIP, **change})
    with pytest.raises(ConfigError, match=message):
        hf_files.read_processor(tmp_path, 28)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template.json", {"chat_template": "T"}),
        ("tokenizer_config.json", {"chat_template": "T"}),
        (
            "tokenizer_config.json",
            {
                "chat_template": [
                    {"name": "tool", "template": "x"},
                    {"name": "default", "template": "T"},
                ]
            },
        ),
    ],
)
def test_template_of_older_folders(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "out").mkdir()
    put(tmp_path, name, value)
    hf_files.copy_files(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "T"


def test_special_ids_prefer_the_generation_config(tmp_path: Path) -> None:
    put(
        tmp_path,
        "tokenizer.json",
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<eos>", "id": 1}]},
    )
    put(tmp_path, "tokenizer_config.json", {"eos_token": {"content": "<eos>"}, "bos_token": "a"})
    assert hf_files.special_ids(tmp_path) == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    put(tmp_path, "generation_config.json", {"eos_token_id": [1, 7]})
    assert hf_files.special_ids(tmp_path, {"eos_token_id": 9, "pad_token_id": 3}) == {
        "bos_token_id": 0,
        "eos_token_id": [1, 7],
        "pad_token_id": 3,
    }


def test_an_ordinary_image_token_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", {"model": {"vocab": {"a": 0, "<image>": 1}}})
    with pytest.raises(ConfigError, match="is an ordinary token"):
        hf_files.add_image_token(tmp_path)
