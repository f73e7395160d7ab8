"""Tools of the checkpoint tests: Hugging Face folders made by changing others."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from mllm_jax.checkpoints.hf.tensor_files import write_tensors
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.leaves import Leaf

Change = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder."""
    return {name: tensor.read() for name, tensor in stored_tensors(folder).items()}


def rewrite(
    source: Path, out: Path, change: Change, config: Callable[[dict], dict] | None = None
) -> Path:
    """A copy of a Hugging Face folder: `change` turns its tensors, `config` its config.json."""
    out.mkdir(parents=True)
    for file in source.iterdir():
        if "safetensors" not in file.name:
            shutil.copyfile(file, out / file.name)
    tensors = dict(change(read_all(source)))
    leaves = {name: Leaf(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    write_tensors(out, leaves, iter(tensors.items()))
    if config is not None:
        path = out / "config.json"
        path.write_text(json.dumps(config(json.loads(path.read_text()))))
    return out


def make_clip(out: Path) -> Path:
    """Folders vision (CLIPVisionModel) and full (CLIPModel, image processor), random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
        "projection_dim": 32,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99}
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)).save_pretrained(
        out / "vision"
    )
    full = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)
    transformers.CLIPModel(full).save_pretrained(out / "full")
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.3, 0.2, 0.1],
    )
    processor.save_pretrained(out / "full")
    return out


def make_siglip(out: Path) -> Path:
    """Folders vision (SiglipVisionModel, no head) and full (SiglipModel, image processor)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    vision = sizes | {"image_size": 30, "patch_size": 7}
    alone = transformers.SiglipVisionConfig(**vision, vision_use_head=False)
    transformers.SiglipVisionModel(alone).save_pretrained(out / "vision")
    full = transformers.SiglipConfig(vision_config=vision, text_config=sizes | {"vocab_size": 100})
    transformers.SiglipModel(full).save_pretrained(out / "full")
    processor = transformers.SiglipImageProcessorPil(size={"height": 30, "width": 30}, resample=2)
    processor.save_pretrained(out / "full")
    return out
