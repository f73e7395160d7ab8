"""Configs of the original LLaVA code (github.com/haotian-liu/LLaVA), which only name their tower.

The tower's sizes are read off its tensors when the folder has them; what no tensor tells (heads,
activation) is known for OpenAI's CLIP towers, and asked for otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints import hf_files
from mllm_jax.checkpoints.hf_config import ConnectorKind, read_language, read_vision
from mllm_jax.checkpoints.hf_names import V
from mllm_jax.errors import require
from mllm_jax.model_config import ConnectorConfig, ModelConfig

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
    projector = config.get("mm_projector_type", "linear")
    require(
        projector in KINDS,
        f"{where}: mm_projector_type={projector!r}; allowed are {', '.join(KINDS)}",
    )
    feature = config.get("mm_vision_select_feature", "patch")
    require(
        feature == "patch",
        f"{where}: mm_vision_select_feature={feature!r}; only 'patch' is supported",
    )
    aspect = config.get("image_aspect_ratio") or "crop"
    require(
        aspect in ("square", "crop", "pad"),
        f"{where}: image_aspect_ratio={aspect!r}; allowed are square and pad",
    )
    markers = [
        name
        for name in ("mm_use_im_start_end", "mm_use_im_patch_token")
        if config.get(name) and name.endswith("end")
    ]
    require(
        not markers, f"{where}: {markers} puts marker tokens around images, which is not supported"
    )
    vision_config = config.get("vision_config") or _from_tensors(folder, config, tensors)
    processor, fit = hf_files.read_processor(folder, vision_config.get("image_size", 224))
    vision = read_vision(
        f"{where} vision_config",
        vision_config,
        config.get("mm_vision_select_layer", -2),
        **processor,
    )
    image_token = (
        hf_files.tokens(folder).get("<image>") if (folder / "tokenizer.json").is_file() else None
    )
    require(
        image_token is not None,
        f"{folder}: tokenizer.json has no <image> token (original LLaVA splices images in "
        "without one); add it and a row for it with transformers, then convert",
    )
    bias = "multi_modal_projector.linear_1.bias" in tensors
    model = ModelConfig(
        vision=vision,
        connector=ConnectorConfig(kind=KINDS[projector], bias=bias),
        language=read_language(where, config | {"model_type": "llama"}),
        image_token=image_token,
    )
    return model, "pad" if aspect == "pad" else fit


def _from_tensors(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """A CLIPVisionConfig read off the tower's tensors."""
    tower = str(config.get("mm_vision_tower") or config.get("vision_tower") or "?")
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
        f"{folder / 'config.json'}: mm_vision_tower={tower!r} is no openai/clip-* tower; "
        "add its CLIPVisionConfig as vision_config",
    )
    assert patch is not None
    assert positions is not None
    assert first is not None
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
