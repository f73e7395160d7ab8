"""Makes a small CLIP folder in the form in which openai/clip-vit-large-patch14-336 is published.

    pytorch_model.bin          a CLIPModel's state_dict() of 2022: float32, with `position_ids`
    config.json                of transformers 4.16: every default written out, null where unset
    preprocessor_config.json   a CLIPFeatureExtractor: plain numbers as sizes

There are no safetensors. The published file was written by torch 1 without `byteorder`.
"""

import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  # installed for tests, on Python 3.11
from transformers import CLIPConfig, CLIPModel

IMAGE_SIZE, PATCH_SIZE, PROJECTION = 28, 7, 32
VISION = {
    "hidden_size": 48,
    "image_size": IMAGE_SIZE,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "patch_size": PATCH_SIZE,
    "projection_dim": PROJECTION,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": PROJECTION,
}
DEFAULTS: dict[str, Any] = {  # a few of the 60 that each section of the published file has
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "dropout": 0.0,
    "hidden_act": "quick_gelu",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-05,
    "max_length": 20,
    "num_beams": 1,
    "pruned_heads": {},
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "top_k": 50,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}
CONFIG = {
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": PROJECTION,
    "text_config": {
        **DEFAULTS,
        **TEXT,
        "eos_token_id": 2,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "vocab_size": 100,
    },
    "text_config_dict": TEXT,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {**DEFAULTS, **VISION, "model_type": "clip_vision_model"},
    "vision_config_dict": VISION,
}
PROCESSOR = {
    "crop_size": IMAGE_SIZE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": IMAGE_SIZE,
}


def make(folder: Path) -> Path:
    """Writes the folder, with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    sections: dict[str, Any] = {"vision_config": VISION, "text_config": {**TEXT, "vocab_size": 100}}
    model = CLIPModel(CLIPConfig(**sections, projection_dim=PROJECTION))
    with torch.no_grad():
        for parameter in model.parameters():  # no norm or bias that could go unread unnoticed
            parameter.add_(torch.randn_like(parameter) / 10)
    save_as_torch_1(folder / "pytorch_model.bin", with_position_ids(model.state_dict()))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2))
    return folder


def with_position_ids(state: Any) -> OrderedDict[str, torch.Tensor]:
    """The buffers that were saved until transformers 4.31: int64 [1, positions], expanded."""
    buffers = {
        f"{part}.embeddings.position_ids": torch.arange(
            len(state[f"{part}.embeddings.position_embedding.weight"])
        ).expand((1, -1))
        for part in ("text_model", "vision_model")
    }
    complete: Any = OrderedDict(buffers | state)
    complete._metadata = state._metadata
    return complete


def save_as_torch_1(path: Path, state: Any) -> None:
    """torch.save, with the entries that torch 1 wrote, under the archive's name "archive"."""
    new = path.with_suffix(".new")
    torch.save(state, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(path, "w") as file:
        for entry in source.namelist():
            name = entry.split("/", 1)[1]
            if name in ("data.pkl", "version") or name.startswith("data/"):
                file.writestr(f"archive/{name}", source.read(entry))
    new.unlink()


def save_as_bin(source: Path, out: Path) -> Path:
    """A copy of a folder whose safetensors have become files of torch.save, shard by shard."""
    from safetensors.torch import load_file

    out.mkdir(parents=True)
    for path in source.iterdir():
        name = path.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        if path.name.endswith(".safetensors.index.json"):
            text = path.read_text().replace('"model-', '"pytorch_model-')
            (out / name).write_text(text.replace(".safetensors", ".bin"))
        elif path.suffix == ".safetensors":
            torch.save(load_file(path), out / name)
        else:
            (out / path.name).write_bytes(path.read_bytes())
    return out
