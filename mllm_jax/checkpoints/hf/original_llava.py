"""Configs of the original LLaVA code (github.com/haotian-liu/LLaVA), which only name their tower.

The tower's sizes are read off its tensors when the folder has them; what no tensor tells (heads,
activation) is known for OpenAI's CLIP towers, and asked for otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.checkpoints.hf.config import (
    LAYERS,
    ConnectorKind,
    read_image_size,
    read_language,
    read_vision,
)
from mllm_jax.checkpoints.hf.grids import read_original_grids
from mllm_jax.checkpoints.hf.names import V
from mllm_jax.checkpoints.hf.processor import cuts_tiles, read_processor
from mllm_jax.common.errors import quoted, require
from mllm_jax.common.fields import Fields
from mllm_jax.config.model import ConnectorConfig, ModelConfig

KINDS: dict[str, ConnectorKind] = {"linear": "linear", "mlp2x_gelu": "mlp"}
OPENAI_HEAD = 64  # every OpenAI CLIP image tower has heads of 64 (config.json of openai/clip-vit-*)


def read_original(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Any]
) -> tuple[ModelConfig, str]:
    """The model's config and how images are fitted ("crop" or "pad").

    Args:
        folder: the opened folder.
        config: its config.json.
        tensors: the table's names of its tensors -> anything with `.shape`.

    Raises:
        ConfigError: the vision weights are missing, or something that this project does not do.
    """
    where = str(folder / "config.json")
    get = Fields(where, config)
    projector = get.choice("mm_projector_type", "linear", *KINDS)
    get.expect("mm_vision_select_feature", "patch")
    get.expect("mm_use_im_start_end", False)  # marker tokens around images
    aspect = get.choice("image_aspect_ratio", "crop", "square", "crop", "pad", "anyres")
    vision = get.section("vision_config", {})
    tower = vision.tree or _from_tensors(folder, get, tensors)
    size = read_image_size(Fields(vision.location, tower), 224)
    grids = read_original_grids(get, size)
    require(
        grids is None or not cuts_tiles(folder),
        f"{folder}: config.json is of the original code, whose image_grid_pinpoints are [width, "
        "height], its image processor is transformers' with [height, width]; remove the processor "
        "file if config.json is right",
    )
    processor, fit = read_processor(folder, size)
    layer = get.whole("mm_vision_select_layer", -2, -LAYERS, LAYERS)
    vision_config = read_vision(f"{where} vision_config", tower, layer, **processor)
    if vision_config.kind != "clip":  # its code cuts off SigLIP's last layer and drops no patch
        vision.refuse(
            "model_type",
            "siglip_vision_model",
            "clip_vision_model: the original code's "
            "SigLIP towers are not read; convert the folder to llava with transformers",
        )
    width = get.whole("mm_hidden_size", vision_config.width)
    if width != vision_config.width:
        get.refuse("mm_hidden_size", width, f"{vision_config.width}, the tower's hidden_size")
    known = hf_tokenizer.tokens(folder) if (folder / "tokenizer.json").is_file() else {}
    require(
        hf_tokenizer.IMAGE in known,
        f"{folder}: tokenizer.json has no <image> token (original LLaVA splices images in "
        "without one); add it and a row for it with transformers, then convert",
    )
    bias = "multi_modal_projector.linear_1.bias" in tensors
    model = ModelConfig(
        vision=vision_config,
        connector=ConnectorConfig(kind=KINDS[projector], bias=bias),
        language=read_language(where, config | {"model_type": "llama"}),
        image_token=known[hf_tokenizer.IMAGE],
        grids=grids,
    )
    return model, "pad" if aspect == "pad" else fit


def _from_tensors(folder: Path, get: Fields, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIPVisionConfig read off the tower's tensors."""
    tower = get.text("mm_vision_tower", get.text("vision_tower", "?"))
    patch, positions = (
        tensors.get(f"{V}embeddings.{n}.weight") for n in ("patch_embedding", "position_embedding")
    )
    first = tensors.get(f"{V}encoder.layers.0.mlp.fc1.weight")
    require(
        patch is not None and positions is not None and first is not None,
        f"{folder}: missing are all model.vision_tower.* (original LLaVA keeps them in {tower}); "
        "load both with the original code, save the whole model, then convert",
    )
    require(
        "openai/clip-" in tower,
        f"{get.location}: mm_vision_tower={quoted(tower)} is not an openai/clip-* tower; "
        "add its CLIPVisionConfig as vision_config",
    )
    assert patch is not None and positions is not None and first is not None
    require(
        [len(tensor.shape) for tensor in (patch, positions, first)] == [4, 2, 2],
        f"{folder}: the tower's embeddings and fc1 do not have 4, 2 and 2 axes; not a CLIP tower",
    )
    width, size = patch.shape[0], patch.shape[-1]
    side = round((positions.shape[0] - 1) ** 0.5)
    layers = sum(name.endswith(".layer_norm1.weight") and name.startswith(V) for name in tensors)
    return {
        "hidden_size": width,
        "intermediate_size": first.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // OPENAI_HEAD,
        "image_size": side * size,
        "patch_size": size,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    }
