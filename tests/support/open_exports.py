"""Opens exported folders with the transformers of the Python that runs this; writes what it sees.

    python tests/support/open_exports.py FOLDER... --prompt TEXT --images a.png b.png --out seen.npz

For every folder NAME, in one file: NAME/logits, NAME/ids, NAME/pixels, and NAME/wrong, the names of
tensors that are missing, unexpected or of another shape. Imports nothing of this project.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # torch is a test extra of Python 3.11
import transformers
from PIL import Image

CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llama": "LlamaForCausalLM",
}


def see(folder: Path, prompt: str, images: list[Path]) -> dict[str, Any]:
    """What stock transformers makes of one folder, in float32."""
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    opened = getattr(transformers, CLASSES.get(kind, "CLIPVisionModel")).from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True
    )
    model, info = opened
    wrong = [f"{key}: {name}" for key, names in info.items() for name in names]
    model.eval()
    seen: dict[str, Any] = {"wrong": np.array(wrong, dtype=np.str_)}
    if kind == "clip_vision_model":
        size = model.config.image_size
        pixels = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
        with torch.no_grad():
            return seen | {"logits": model(pixels).last_hidden_state.numpy()}
    inputs = _inputs(folder, kind, prompt, images)
    with torch.no_grad():
        seen["logits"] = model(**inputs).logits.numpy()
    pixels = inputs.get("pixel_values", torch.zeros(0))
    return seen | {"ids": inputs["input_ids"].numpy(), "pixels": pixels.numpy()}


def _inputs(folder: Path, kind: str, prompt: str, images: list[Path]) -> dict[str, Any]:
    if kind == "llama":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return {"input_ids": tokenizer(prompt, return_tensors="pt")["input_ids"]}
    processor = transformers.AutoProcessor.from_pretrained(folder)
    pictures = [Image.open(path) for path in images]
    inputs = processor(text=prompt, images=pictures, return_tensors="pt")
    names = ("input_ids", "pixel_values", "image_sizes")
    return {name: inputs[name] for name in names if name in inputs}


def main() -> None:
    """Writes one file for all folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    seen = {}
    for folder in a.folders:
        for name, value in see(folder, a.prompt, a.images).items():
            seen[f"{folder.name}/{name}"] = value
    np.savez(a.out, version=np.array(transformers.__version__), **seen)


if __name__ == "__main__":
    main()
