"""Does stock transformers compute what we compute? Logits on held-out prompts, in float32.

    python tests/support/check_export.py RUN HF --data heldout.json --images images/ \\
        [--count 8] [--tolerance 1e-4]

RUN is ours (a run or model folder), HF its export. Token ids must be equal, pixel values within
1e-5. Exit code 1 when the difference of a logit is above the tolerance. Needs torch.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # torch is a test extra of Python 3.11
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from mllm_jax.config.data import StreamConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.data.images.decode import normalise
from mllm_jax.data.records.parse import IMAGE, Record
from mllm_jax.evaluation.questions import load_records
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm


class Ours:
    """The model as mllm_jax sees it."""

    def __init__(self, folder: Path):
        self.opened = Answerer(folder, ComputeConfig(compute="float32", remat="none"))
        model = self.opened.model
        self.forward = jax.jit(
            lambda params, inputs: mllm.logits(
                mllm.hidden(model, params, inputs), mllm.head(params)
            )
        )

    def __call__(self, record: Record) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Of a record's prompt: ids [T], pixel values of each image's tiles, logits [T, V]."""
        vision = self.opened.config.vision
        assert vision is not None
        pictures = self.opened.pictures(record.images)
        prompt = self.opened.prompt(record.turns[:-1], 1, images=record.images)
        slots = sum(len(picture.pixels) for picture in pictures)
        batch = self.opened.batch([prompt], [pictures], 1, slots)
        logits = self.forward(self.opened.params, batch.inputs)
        values = [normalise(x.pixels, vision.image_mean, vision.image_std) for x in pictures]
        return prompt.tokens, values, np.asarray(logits[0, : len(prompt.tokens)])


class Theirs:
    """The exported folder as transformers sees it."""

    def __init__(self, folder: Path):
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        (name,) = config.architectures
        opened: Any = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        self.model, info = opened
        assert not info["missing_keys"], info
        assert not info["unexpected_keys"], info
        self.model.eval()

    def __call__(self, record: Record) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """The same three for the same prompt, through transformers' own processor.

        LLaVA-NeXT's images have black tiles behind their own, up to one number for all.
        """
        (turn,) = record.turns[:-1]
        text = "".join(part for part in turn.parts if part is not IMAGE).strip()
        content = [*({"type": "image"} for _ in record.images), {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        rendered = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        images = [Image.open(path) for path in record.images]
        inputs = self.processor(
            images=images, text=rendered, add_special_tokens=False, return_tensors="pt"
        )
        with torch.no_grad():
            logits = self.model(**inputs).logits[0]
        values = inputs["pixel_values"].numpy()
        tiles = values if values.ndim == 5 else values[:, None]
        return inputs["input_ids"][0].numpy(), list(tiles.transpose(0, 1, 3, 4, 2)), logits.numpy()


def compare(run: Path, hf: Path, data: Path, images: Path, count: int = 8) -> float:
    """The largest difference of a logit over `count` held-out prompts.

    Raises:
        AssertionError: ids or pixels differ.
    """
    ours, theirs = Ours(run), Theirs(hf)
    records = load_records(
        "check", StreamConfig(str(data), str(images)), ours.opened.source.config.languages
    )
    worst = 0.0
    for record in records[:: max(1, len(records) // count)][:count]:
        (ids, pixels, logits), (their_ids, their_pixels, their_logits) = (
            ours(record),
            theirs(record),
        )
        np.testing.assert_array_equal(ids, their_ids, err_msg=record.id)
        for image, theirs_of_image in zip(pixels, their_pixels, strict=True):
            same = theirs_of_image[: len(image)]
            np.testing.assert_allclose(image, same, atol=1e-5, err_msg=record.id)
        worst = max(worst, float(np.abs(logits - their_logits).max()))
    return worst


def main() -> int:
    """Prints the largest difference; returns 1 when it is above the tolerance."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("hf", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    a = parser.parse_args()
    worst = compare(a.run, a.hf, a.data, a.images, a.count)
    verdict = "within" if worst <= a.tolerance else "ABOVE"
    print(
        f"transformers opens {a.hf}: largest logit difference {worst:.2e} "
        f"over {a.count} prompts, {verdict} {a.tolerance:g}"
    )
    return 0 if worst <= a.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
