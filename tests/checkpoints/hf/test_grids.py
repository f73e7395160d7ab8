"""LLaVA-NeXT's config.json and image processor <-> `model.grids`; what is refused, in one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints.hf.config import read_llava
from mllm_jax.checkpoints.hf.grids import read_grids, read_original_grids
from mllm_jax.checkpoints.hf.processor import cuts_tiles, read_processor, write_processor
from mllm_jax.checkpoints.hf.unread import listed, read_unread
from mllm_jax.checkpoints.hf.write_config import write_config
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.fields import Fields
from mllm_jax.config.grids import NEXT_SIZES, GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

NEXT = {"model_type": "llava_next"}
ORIGINAL = {
    "model_type": "llava_llama",
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[336, 672], [672, 336]],
}
TRAINED = GridsConfig("wh", ((336, 672), (1008, 336)), "original", "pad")
GRIDS = [GridsConfig("hw"), GridsConfig("hw", rounding="original"), TRAINED]
FULL = ModelConfig(VisionConfig(), ConnectorConfig("mlp"), LanguageConfig(), 128256)


def read(fields: dict[str, Any]) -> GridsConfig:
    return read_grids(Fields("here", fields), 336)


def read_original(fields: dict[str, Any]) -> GridsConfig | None:
    return read_original_grids(Fields("here", fields), 336)


def put(folder: Path, name: str, tree: Any) -> None:
    (folder / name).write_text(json.dumps(tree))


def test_absent_fields_are_those_of_llava_next_config() -> None:
    transformers = pytest.importorskip("transformers")
    written = transformers.LlavaNextConfig().to_dict()
    assert read(NEXT) == read(written) == GridsConfig("hw", NEXT_SIZES, "hf", "tiles")
    ours = read_llava("here", {"image_token_index": 31_999}, "mlp", read(NEXT))
    written["image_token_index"] = 31_999  # the default is outside of its default vocabulary
    assert ours == read_llava("here", written, "mlp", read(written))


def test_a_config_as_the_converter_of_transformers_4_39_writes_it() -> None:
    """With <image> added to Llama 3's 128,256 rows, which grow to a multiple of 64."""
    text = {"model_type": "llama", "vocab_size": 128320, "intermediate_size": 14336}
    text |= {"num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0}
    config = NEXT | {"text_config": text | {"rms_norm_eps": 1e-5}, "ignore_index": -100}
    config |= {"image_token_index": 128256, "use_image_newline_parameter": True}
    config |= {"image_grid_pinpoints": [list(size) for size in NEXT_SIZES], "vocab_size": 128320}
    model = read_llava("here", config, "mlp", read(config))
    language = dataclasses.replace(LanguageConfig(), max_length=8192)
    assert model == dataclasses.replace(FULL, language=language, grids=GridsConfig("hw"))
    assert [model.image_layout(size).placeholders for size in ((480, 640), (336, 336))] == [
        2340, 1176,
    ]  # fmt: skip


@pytest.mark.parametrize("grids", GRIDS)
def test_what_was_trained_with_is_restored(grids: GridsConfig) -> None:
    """Stock transformers takes (height, width) and tries the canvases in the order given."""
    model = dataclasses.replace(FULL, grids=grids)
    written = json.loads(json.dumps(write_config(model, "float32", {})))
    assert read(written) == grids
    assert read_llava("here", written, "mlp", read(written)) == model
    assert written["model_type"] == "llava_next"
    assert written["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert written["image_grid_pinpoints"] == [list(canvas) for canvas in grids.canvases]
    assert ("mllm_jax_grids" in written) == (grids != GridsConfig("hw"))


def test_the_first_canvas_is_the_same_in_both_orders() -> None:
    assert TRAINED.canvases == ((672, 336), (336, 1008))
    assert write_config(dataclasses.replace(FULL, grids=TRAINED), "float32", {})[
        "image_grid_pinpoints"
    ] == [[672, 336], [336, 1008]]


@pytest.mark.parametrize(
    ("pinpoints", "message"),
    [
        ("[[336, 672]]", r"image_grid_pinpoints='\[\[336, 672\]\]'; expected a list"),
        ([], r"image_grid_pinpoints=\[\]; expected 1 to 100 canvases as \[height, width\]"),
        ([[336, 672, 3]], r"image_grid_pinpoints\[0\]=\[336, 672, 3\]; expected \[height, width\]"),
        ([[336, 672], 336], r"image_grid_pinpoints\[1\]=336; expected \[height, width\], two"),
        ([[336, "672"]], r"image_grid_pinpoints\[0\]="),
        ([[336, 0]], r"image_grid_pinpoints\[0\]=\[336, 0\]; expected \[height, width\], two"),
        ([[336, 10**30]], r"image_grid_pinpoints\[0\]=\[336, 10+\]; expected"),
        ([[336, True]], r"image_grid_pinpoints\[0\]="),
        ([[336, 600]], r"\[336, 600\]; expected multiples of 336, the vision tower's image_size"),
        ([[336, 672]] * 2, r"image_grid_pinpoints\[1\]=\[336, 672\]; expected every canvas once"),
        ([[336 * i, 336] for i in range(1, 40)] * 3, r"expected 1 to 100 canvases"),
    ],
)
def test_pinpoints_that_cannot_be_cut(pinpoints: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(NEXT | {"image_grid_pinpoints": pinpoints})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_image_newline_parameter": False}, "use_image_newline_parameter=False is not supp"),
        ({"mllm_jax_grids": []}, r"mllm_jax_grids=\[\]; expected an object"),
        ({"mllm_jax_grids": {"order": "xy"}}, "mllm_jax_grids: order='xy'; expected 'hw' or 'wh'"),
        ({"mllm_jax_grids": {"rounding": 7}}, "rounding=7; expected 'hf' or 'original'"),
        ({"mllm_jax_grids": {"several_images": "x"}}, "expected 'tiles' or 'pad'"),
        ({"mllm_jax_grids": {"round": "hf"}}, "unknown 'round'; allowed are order, rounding and"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            r"may be \[height, width\] \(model_type 'llava_next'\) or \[width, height\] "
            r"\(mm_patch_merge_type\); write them as",
        ),
    ],
)
def test_switches_that_contradict(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(NEXT | fields)


def test_canvases_that_are_the_same_either_way_are_not_ambiguous() -> None:
    square = NEXT | {"image_grid_pinpoints": [[672, 672]], "mm_projector_type": "mlp2x_gelu"}
    assert read(square).canvases == ((672, 672),)


@pytest.mark.parametrize("pinpoints", [[[336, 672], [672, 336]], "[(336, 672), (672, 336)]"])
def test_the_original_code_writes_width_first(pinpoints: Any) -> None:
    grids = read_original(ORIGINAL | {"image_grid_pinpoints": pinpoints})
    assert grids == GridsConfig("wh", ((336, 672), (672, 336)), "original", "pad")
    assert grids is not None and grids.canvases[0] == (672, 336), "height, width"


def test_the_original_code_without_tiles() -> None:
    for aspect in ("square", "crop", "pad", None):
        assert read_original({"image_aspect_ratio": aspect}) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_grid_pinpoints": None}, r"pinpoints is missing; write .* as \[width, height\]"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "here: image_grid_pinpoints:1: not JSON"),
        ({"image_grid_pinpoints": "7"}, r"=7; expected a list of \[width, height\]"),
        ({"image_grid_pinpoints": [[336]]}, r"=\[336\]; expected \[width, height\]"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type='flat'; expected 'spatial_unpad'"),
        ({"mm_patch_merge_type": "maxpool2x2"}, "mm_patch_merge_type='maxpool2x2'; expected"),
        ({"image_aspect_ratio": "pad"}, "mm_patch_merge_type='spatial_unpad'; expected flat"),
    ],
)
def test_another_original_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_original(ORIGINAL | fields)


# --------------------------------------------------------------------------------------- processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The processor files of a model that was trained by the original code's choices."""
    added = [{"content": "<image>", "id": 128256}]
    put(tmp_path, "tokenizer.json", {"model": {"vocab": {}}, "added_tokens": added})
    write_processor(tmp_path, dataclasses.replace(FULL, grids=TRAINED), "crop")
    return tmp_path


def test_processor_files(folder: Path) -> None:
    new = json.loads((folder / "processor_config.json").read_text())
    old = json.loads((folder / "preprocessor_config.json").read_text())
    assert new["processor_class"] == old["processor_class"] == "LlavaNextProcessor"
    assert new["num_additional_image_tokens"] == 1
    assert new["image_processor"] == {k: x for k, x in old.items() if k != "processor_class"}
    assert old["image_processor_type"] == "LlavaNextImageProcessor"
    assert old["image_grid_pinpoints"] == [[672, 336], [336, 1008]]
    assert old["size"] == {"shortest_edge": 336}
    assert read_processor(folder, 336, TRAINED)[1] == "crop"


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_processor_and_config_must_agree(folder: Path, file: str) -> None:
    other = dataclasses.replace(TRAINED, order="hw")
    with pytest.raises(
        ConfigError, match=r"pinpoints=\[\[672, 336\], .*; expected \[\[336, 672\], .* as in config"
    ):
        read_processor(folder, 336, other)
    with pytest.raises(ConfigError, match="image_processor_type='LlavaNextImageProcessor'; exp"):
        read_processor(folder, 336)
    tree = json.loads((folder / file).read_text())
    settings = tree.get("image_processor", tree)
    settings["image_processor_type"] = "CLIPImageProcessor"
    put(folder, file, tree)
    with pytest.raises(ConfigError, match=r"'CLIPImageProcessor'; expected LlavaNextImageProcess"):
        read_processor(folder, 336, TRAINED)
    settings |= {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": None}
    put(folder, file, tree)
    with pytest.raises(ConfigError, match=r"pinpoints=\[\[336, 672\], \[672, 336\].*; expected"):
        read_processor(folder, 336, TRAINED)


def test_a_model_without_tiles_leaves_no_trace(folder: Path) -> None:
    write_processor(folder, FULL, "crop")
    for name in ("processor_config.json", "preprocessor_config.json"):
        assert "pinpoints" not in (folder / name).read_text()
    assert not cuts_tiles(folder)


def test_what_is_read_is_not_carried_as_unread(tmp_path: Path) -> None:
    config = write_config(dataclasses.replace(FULL, grids=TRAINED), "float32", {})
    put(tmp_path, "config.json", config | {"new": 1})
    assert listed(read_unread(tmp_path)) == ["outer.new=1"]
    stray = write_config(FULL, "float32", {}) | {"image_grid_pinpoints": [[336, 672]]}
    put(tmp_path, "config.json", stray)
    assert listed(read_unread(tmp_path)) == ["outer.image_grid_pinpoints=[[336, 672]]"]
