"""Hugging Face folders in every key layout; tensors that are missing, extra or misshapen."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_jax.checkpoints.hf.names import V
from mllm_jax.checkpoints.hf.original_llava import read_original
from mllm_jax.checkpoints.hf.reader import HFFolder
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models import mllm
from tests.checkpoints.folders import make_clip, read_all, rewrite

Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"))


def abstract(model: ModelConfig) -> dict:
    return mllm.abstract_params(mllm.build(model, ComputeConfig()))


def parameters(folder: Path) -> dict[str, np.ndarray]:
    opened = HFFolder(folder)
    return {
        path: leaf.read() for path, leaf in opened.leaves(abstract(opened.config.model)).items()
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        assert a[path].tobytes() == b[path].tobytes(), path


def replace(*pairs: tuple[str, str]) -> Rename:
    def rename(name: str) -> str:
        for old, new in pairs:
            if name.startswith(old):
                return new + name[len(old) :]
        raise AssertionError(name)

    return rename


VISION, CONNECTOR = "vision_tower.", "multi_modal_projector."
LANGUAGE, HEAD = "language_model.model.", "language_model.lm_head."
NEWLINE = "image_newline"
BOTH = ["llava_two_images", "llava_next_two_images"]
LLAVA_LAYOUTS = {
    "hub before 4.52": replace(
        (VISION, "vision_tower.vision_model."),
        (CONNECTOR, CONNECTOR),
        ("language_model.", "language_model."),
        (NEWLINE, NEWLINE),
    ),
    "memory, 4.52": replace(
        (VISION, "model.vision_tower.vision_model."),
        (CONNECTOR, "model.multi_modal_projector."),
        (LANGUAGE, "model.language_model."),
        (HEAD, "lm_head."),
        (NEWLINE, "model.image_newline"),
    ),
    "memory, 5": replace(
        (VISION, "model.vision_tower."),
        (CONNECTOR, "model.multi_modal_projector."),
        (LANGUAGE, "model.language_model."),
        (HEAD, "lm_head."),
        (NEWLINE, "model.image_newline"),
    ),
}
ORIGINAL = replace(
    (VISION, "model.vision_tower.vision_tower.vision_model."),
    (f"{CONNECTOR}linear_1.", "model.mm_projector.0."),
    (f"{CONNECTOR}linear_2.", "model.mm_projector.2."),
    (LANGUAGE, "model."),
    (HEAD, "lm_head."),
    (NEWLINE, "model.image_newline"),
)


def original_config(config: dict, projector: str) -> dict:
    tiles = {}
    if config["model_type"] == "llava_next":
        pinpoints = [[width, height] for height, width in config["image_grid_pinpoints"]]
        tiles = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        tiles |= {"image_grid_pinpoints": pinpoints}
    return (
        config["text_config"]
        | tiles
        | {
            "model_type": "llava_llama",
            "architectures": ["LlavaLlamaForCausalLM"],
            "mm_projector_type": projector,
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_vision_select_layer": -2,
            "vision_config": config["vision_config"],
        }
    )


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("layout", LLAVA_LAYOUTS)
def test_llava_layouts(oracle: Path, tmp_path: Path, layout: str, name: str) -> None:
    rename = LLAVA_LAYOUTS[layout]
    source = oracle / name
    folder = rewrite(source, tmp_path / "x", lambda t: {rename(name): x for name, x in t.items()})
    assert not set(read_all(folder)) & {
        name for name in read_all(source) if name.startswith("vision")
    }
    same(parameters(folder), parameters(source))


def test_original_llava_mlp(oracle: Path, tmp_path: Path) -> None:
    source = oracle / "llava_two_images"
    folder = rewrite(
        source,
        tmp_path / "x",
        lambda t: {ORIGINAL(name): x for name, x in t.items()},
        lambda c: original_config(c, "mlp2x_gelu"),
    )
    same(parameters(folder), parameters(source))
    assert HFFolder(folder).config.model == HFFolder(source).config.model


def test_original_llava_next(oracle: Path, tmp_path: Path) -> None:
    """Its canvases are (width, height); with transformers' processor nobody can know that."""
    source = oracle / "llava_next_two_images"
    folder = rewrite(
        source,
        tmp_path / "x",
        lambda t: {ORIGINAL(name): x for name, x in t.items()},
        lambda c: original_config(c, "mlp2x_gelu"),
    )
    with pytest.raises(ConfigError, match=r"are \[width, height\], .* transformers' with \[height"):
        HFFolder(folder)
    (folder / "processor_config.json").unlink()
    same(parameters(folder), parameters(source))
    ours, theirs = HFFolder(folder).config.model, HFFolder(source).config.model
    assert ours.grids is not None and theirs.grids is not None
    assert ours.grids.canvases == theirs.grids.canvases
    assert (ours.grids.order, ours.grids.rounding) == ("wh", "original")
    assert ours.grids.several_images == "pad"
    assert dataclasses.replace(ours, grids=theirs.grids) == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"missing 1 \(image_newline\); image_newline ends each line of patches"),
        (slice(63), r"misshapen 1 \(image_newline is \[63\], expected \[64\]\)"),
        ((None, slice(None)), r"misshapen 1 \(image_newline is \[1, 64\], expected \[64\]\)"),
    ],
)
def test_a_folder_without_its_newline(
    oracle: Path, tmp_path: Path, change: Any, message: str
) -> None:
    def without(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        newline = tensors.pop(NEWLINE)
        return tensors if change is None else tensors | {NEWLINE: newline[change]}

    opened = HFFolder(rewrite(oracle / "llava_next_mlp", tmp_path / "x", without))
    with pytest.raises(ConfigError, match=message) as error:
        opened.leaves(abstract(opened.config.model))
    assert "\n" not in str(error.value)


def test_original_llava_linear(oracle: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = {name: x for name, x in tensors.items() if "linear_2" not in name}
        return {
            ORIGINAL(name).replace("mm_projector.0.", "mm_projector."): x
            for name, x in kept.items()
        }

    source = oracle / "llava_linear"
    folder = rewrite(source, tmp_path / "x", change, lambda c: original_config(c, "linear"))
    assert "model.mm_projector.weight" in read_all(folder)
    same(parameters(folder), parameters(source))


def test_original_llava_without_its_tower(oracle: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {ORIGINAL(name): x for name, x in tensors.items() if not name.startswith(VISION)}

    def config(with_vision: bool) -> Callable[[dict], dict]:
        return lambda c: {
            k: v
            for k, v in original_config(c, "mlp2x_gelu").items()
            if with_vision or k != "vision_config"
        }

    source = oracle / "llava_two_images"
    folder = rewrite(source, tmp_path / "a", change, config(True))
    opened = HFFolder(folder)
    with pytest.raises(
        ConfigError, match=r"missing 55 \(vision_tower\..*vision weights are in another folder"
    ):
        opened.leaves(abstract(opened.config.model))
    with pytest.raises(
        ConfigError, match=r"original LLaVA keeps them in openai/clip-vit-large-patch14-336"
    ):
        HFFolder(rewrite(source, tmp_path / "b", change, config(False)))


class _Shape:
    def __init__(self, *shape: int):
        self.shape = shape


def test_original_llava_reads_the_tower_off_its_tensors(oracle: Path) -> None:
    tensors = {
        f"{V}embeddings.patch_embedding.weight": _Shape(1024, 3, 14, 14),
        f"{V}embeddings.position_embedding.weight": _Shape(577, 1024),
        f"{V}encoder.layers.0.mlp.fc1.weight": _Shape(4096, 1024),
        **{f"{V}encoder.layers.{i}.layer_norm1.weight": _Shape(1024) for i in range(24)},
    }
    config = {
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "vocab_size": 412,
        "image_aspect_ratio": "pad",
    }
    model, fit = read_original(oracle / "llama", config, tensors)
    vision = model.vision
    assert vision is not None
    assert fit == "pad"
    assert (vision.width, vision.heads, vision.layers, vision.mlp) == (1024, 16, 24, 4096)
    assert (vision.image_size, vision.patch_size, vision.activation) == (336, 14, "quick_gelu")
    with pytest.raises(ConfigError, match=r"add its CLIPVisionConfig as vision_config"):
        read_original(oracle / "llama", config | {"mm_vision_tower": "google/siglip"}, tensors)


def test_clip_layouts(clip: Path, tmp_path: Path) -> None:
    vision = parameters(clip / "vision")
    old = rewrite(
        clip / "vision",
        tmp_path / "old",
        lambda t: {f"vision_model.{name}": x for name, x in t.items()},
    )
    same(parameters(old), vision)
    opened = HFFolder(clip / "full")
    assert parameters(clip / "full").keys() == vision.keys()
    assert opened.config.model.vision is not None
    assert opened.config.model.vision.image_mean == (0.5, 0.4, 0.3)
    assert {"logit_scale", "text_projection.weight", "visual_projection.weight"} <= set(
        opened.left_out
    )
    assert all(
        name.startswith("text_")
        for name in opened.left_out
        if name not in ("logit_scale", "visual_projection.weight")
    )


def test_missing_extra_and_misshapen_tensors_are_listed(oracle: Path, tmp_path: Path) -> None:
    gone, bent = (
        "language_model.model.layers.1.mlp.up_proj.weight",
        "multi_modal_projector.linear_1.weight",
    )

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        del tensors[gone]
        tensors[bent] = tensors[bent][:, :-1]
        return tensors | {"model.layers.0.self_attn.q_norm.weight": np.zeros(3, np.float32)}

    opened = HFFolder(rewrite(oracle / "llava_two_images", tmp_path / "x", change))
    with pytest.raises(ConfigError) as error:
        opened.leaves(abstract(opened.config.model))
    message = str(error.value)
    assert f"missing 1 ({gone})" in message
    assert "extra 1 (model.layers.0.self_attn.q_norm.weight)" in message
    assert f"misshapen 1 ({bent} is [64, 47], expected [64, 48])" in message


def test_a_layer_too_many_is_extra(oracle: Path, tmp_path: Path) -> None:
    def config(c: dict) -> dict:
        return c | {"num_hidden_layers": 2}

    opened = HFFolder(rewrite(oracle / "llama", tmp_path / "x", lambda t: t, config))
    with pytest.raises(ConfigError, match=r"extra 9 \(model\.layers\.2\."):
        opened.leaves(abstract(opened.config.model))


def test_linear_is_recognised_by_its_identity(oracle: Path, tmp_path: Path) -> None:
    for name in ("linear", "mlp"):
        connector = HFFolder(oracle / f"llava_{name}").config.model.connector
        assert connector is not None
        assert connector.kind == name

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors["multi_modal_projector.linear_2.bias"][3] = 1e-3
        return tensors

    with pytest.raises(ConfigError, match="linear_2 that is not the identity with zero bias"):
        HFFolder(rewrite(oracle / "llava_linear", tmp_path / "x", change))


def test_tied_head(oracle: Path, tmp_path: Path) -> None:
    source = oracle / "llama32_tied"

    def add_head(tensors: dict[str, np.ndarray], change: float) -> dict[str, np.ndarray]:
        return tensors | {
            "lm_head.weight": tensors["model.embed_tokens.weight"] + np.float32(change)
        }

    folder = rewrite(source, tmp_path / "same", lambda t: add_head(t, 0))
    same(parameters(folder), parameters(source))
    with pytest.raises(ConfigError, match=r"tie_word_embeddings=true, but lm_head.weight differs"):
        HFFolder(rewrite(source, tmp_path / "other", lambda t: add_head(t, 1)))


def test_layers_in_different_formats_are_refused(oracle: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        name = "model.layers.1.mlp.up_proj.weight"
        return tensors | {name: tensors[name].astype(np.float16)}

    opened = HFFolder(rewrite(oracle / "llama", tmp_path / "x", change))
    with pytest.raises(ConfigError, match=r"different number formats \['F16', 'F32'\]"):
        opened.leaves(abstract(opened.config.model))


def test_base_model_from_the_config(oracle: Path, tmp_path: Path) -> None:
    assert HFFolder(oracle / "llama").config.base_models == ("llama",)
    named = rewrite(
        oracle / "llama", tmp_path / "x", lambda t: t, lambda c: c | {"_name_or_path": "org/name"}
    )
    assert HFFolder(named).config.base_models == ("org/name",)
    assert json.loads((named / "config.json").read_text())["_name_or_path"] == "org/name"
