"""Image processors: what a folder's does, and one that does what we do."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints.hf.processor import check_placeholders, read_processor, write_processor
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

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
    put(tmp_path, "preprocessor_config.json", CLIP)
    put(
        tmp_path,
        "processor_config.json",
        {"patch_size": 7, **({"image_processor": CLIP} if nested else {})},
    )
    stats, fit = read_processor(tmp_path, 28)
    given = {"image_mean": (0.1, 0.2, 0.3), "image_std": (1.0, 1.0, 1.0)}
    assert stats == given | {"resample": "bicubic"}
    assert fit == "crop"


def test_two_files_that_describe_different_processors(tmp_path: Path) -> None:
    """transformers 5 reads the first, 4 the second."""
    put(tmp_path, "processor_config.json", {"image_processor": CLIP})
    put(tmp_path, "preprocessor_config.json", {**CLIP, "image_mean": [0.1, 0.2, 0.4]})
    with pytest.raises(ConfigError, match="describe different image processors"):
        read_processor(tmp_path, 28)


def test_only_llavas_processor_pads(tmp_path: Path) -> None:
    put(tmp_path, "preprocessor_config.json", {**CLIP, "do_pad": True})
    assert read_processor(tmp_path, 28)[1] == "crop"


PLACES = {
    "patch_size": 7,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
    "image_token": "<image>",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        (dict.fromkeys(PLACES), None),
        ({"patch_size": 14}, "patch_size=14; expected 7, as in vision_config"),
        ({"num_additional_image_tokens": 0}, "num_additional_image_tokens=0 is not supported"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ({"image_token": "<pad>"}, "image_token='<pad>'; expected the text of token 3"),
        ({"image_token": "<other>"}, "image_token='<other>'"),
    ],
)
def test_placeholders_of_the_processor(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    vision = VisionConfig(image_size=28, patch_size=7)
    model = ModelConfig(vision, ConnectorConfig(), LanguageConfig(), image_token=3)
    added = [{"content": "<image>", "id": 3}, {"content": "<pad>", "id": 4}]
    put(tmp_path, "tokenizer.json", {"model": {"vocab": {}}, "added_tokens": added})
    put(tmp_path, "processor_config.json", PLACES | change)
    if message is None:
        check_placeholders(tmp_path, model)
        return
    with pytest.raises(ConfigError, match=rf"processor_config\.json: {message}"):
        check_placeholders(tmp_path, model)


def test_unread_fields_of_a_processor_are_carried(tmp_path: Path) -> None:
    vision = VisionConfig(image_size=28, patch_size=7)
    model = ModelConfig(vision, ConnectorConfig(), LanguageConfig(), image_token=3)
    tokens = {"model": {"vocab": {}}, "added_tokens": [{"content": "<image>", "id": 3}]}
    put(tmp_path, "tokenizer.json", tokens)
    source = {**CLIP, "do_pad": True, "new_field": 1, "size": 28}
    put(tmp_path, "processor_config.json", {"image_processor": source, "other": [2]})
    write_processor(tmp_path, model, "crop")
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert written["other"] == [2]
    assert written["image_processor"]["new_field"] == 1
    assert "do_pad" not in written["image_processor"]
    assert written["image_processor"]["size"] == {"shortest_edge": 28}
    check_placeholders(tmp_path, model)
    assert read_processor(tmp_path, 28)[1] == "crop"
    before = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert before == written["image_processor"] | {"processor_class": "LlavaProcessor"}


def test_old_sizes_and_padding(tmp_path: Path) -> None:
    put(
        tmp_path,
        "preprocessor_config.json",
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 28},
    )
    assert read_processor(tmp_path, 28) == ({}, "crop")
    put(
        tmp_path,
        "preprocessor_config.json",
        {**CLIP, "image_processor_type": "LlavaImageProcessorFast", "do_pad": True},
    )
    assert read_processor(tmp_path, 28)[1] == "pad"


SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 30, "width": 30}}


def test_siglips_processor(tmp_path: Path) -> None:
    """It stretches; mean and deviation are 0.5 where it does not say, as in transformers."""
    half = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    assert read_processor(tmp_path, 30, kind="siglip") == (half, "stretch")
    assert read_processor(tmp_path, 30) == ({}, "crop")
    put(tmp_path, "preprocessor_config.json", SIGLIP)
    assert read_processor(tmp_path, 30) == (half, "stretch")
    put(tmp_path, "preprocessor_config.json", SIGLIP | {"resample": 2, "image_std": [1, 1, 1]})
    given = half | {"image_std": (1.0, 1.0, 1.0), "resample": "bilinear"}
    assert read_processor(tmp_path, 30, kind="siglip") == (given, "stretch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 30}, "size=30; expected height and width 30"),  # would be the shorter side
        ({"size": {"height": 30, "width": 32}}, "expected height and width 30"),
        ({"do_center_crop": True}, "do_center_crop=True is not supported"),
        ({"do_pad": True}, "do_pad=True is not supported"),
        ({"do_normalize": False}, "do_normalize=False; expected true"),
    ],
)
def test_another_siglip_processor_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    put(tmp_path, "preprocessor_config.json", SIGLIP | change)
    with pytest.raises(ConfigError, match=message):
        read_processor(tmp_path, 30, kind="siglip")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_a_written_processor_is_read_back(tmp_path: Path, fit: str, resample: Any) -> None:
    """Of every kind, whatever the source's was; with SigLIP no class token is counted."""
    vision = VisionConfig(
        kind="siglip", image_size=30, patch_size=7, image_mean=(0.1, 0.2, 0.3), resample=resample
    )
    model = ModelConfig(vision, ConnectorConfig(), LanguageConfig(), image_token=3)
    tokens = {"model": {"vocab": {}}, "added_tokens": [{"content": "<image>", "id": 3}]}
    put(tmp_path, "tokenizer.json", tokens)
    put(tmp_path, "preprocessor_config.json", CLIP if fit == "stretch" else SIGLIP)
    write_processor(tmp_path, model, fit)
    stats, read = read_processor(tmp_path, 30, kind="siglip")
    assert read == fit
    assert stats["image_mean"] == (0.1, 0.2, 0.3)
    assert stats["resample"] == resample
    check_placeholders(tmp_path, model)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert written["num_additional_image_tokens"] == 0
    assert written["vision_feature_select_strategy"] == "full"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, None),
        ({"vision_feature_select_strategy": None, "num_additional_image_tokens": None}, None),
        ({}, "vision_feature_select_strategy='default'; expected full: SigLIP has no class token"),
        (
            {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 1},
            "num_additional_image_tokens=1 is not supported",
        ),
    ],
)
def test_placeholders_of_siglip(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    vision = VisionConfig(kind="siglip", image_size=30, patch_size=7)
    model = ModelConfig(vision, ConnectorConfig(), LanguageConfig(), image_token=3)
    places = {"patch_size": 7, "num_additional_image_tokens": 0}
    put(
        tmp_path,
        "processor_config.json",
        places | {"vision_feature_select_strategy": "default"} | change,
    )
    if message is None:
        check_placeholders(tmp_path, model)
        return
    with pytest.raises(ConfigError, match=rf"processor_config\.json: {message}"):
        check_placeholders(tmp_path, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 1}, "resample=1; expected 3 or 2"),
        ({"do_center_crop": False}, "do_center_crop=False; expected true"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0"),
        ({"rescale_factor": 1 / 256}, "rescale_factor=0.00390625; expected 1/255"),
        ({"size": {"height": 28, "width": 28}}, "size="),
        ({"size": {"shortest_edge": 32}}, "expected shortest_edge 28, the vision tower's size"),
        ({"crop_size": {"height": 28, "width": 32}}, "crop_size="),
        ({"do_rescale": None}, "do_rescale=None; expected true"),  # transformers: not rescaled
        ({"do_resize": 1}, "do_resize=1; expected true"),
        ({"do_convert_rgb": False}, "do_convert_rgb=False is not supported"),
        ({"use_square_size": True}, "use_square_size=True is not supported"),
        ({"size": [28, 28]}, r"size=\[28, 28\]; expected a whole number"),
        ({"size": 28.0}, "size=28.0"),
        ({"size": {"shortest_edge": "28"}}, "size: shortest_edge='28'"),
        ({"size": {"longest_edge": 28}}, "size=.*; expected shortest_edge 28"),
        ({"crop_size": "28"}, "crop_size='28'"),
        ({"crop_size": {"height": 28}}, "crop_size=.*; expected height and width 28"),
        ({"image_mean": 0.5}, "image_mean=0.5; expected a list"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\]; expected three numbers"),
        ({"image_mean": ["a", 0, 0]}, r"image_mean\[0\]='a'; expected a number"),
        ({"image_std": [1, 0, 1]}, r"image_std\[1\]=0; expected a number from 1e-06"),
        ({"image_std": [1, 1, float("nan")]}, r"image_std\[2\]=nan"),
        ({"image_processor_type": 3}, "image_processor_type=3; expected text"),
        ({"rescale_factor": "0.0039"}, "rescale_factor='0.0039'; expected a number"),
        ({"image_processor_type": "SiglipImageProcessor"}, "expected height and width 28"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
    ],
)
def test_another_processor_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    put(tmp_path, "preprocessor_config.json", {**CLIP, **change})
    with pytest.raises(ConfigError, match=message):
        read_processor(tmp_path, 28)
