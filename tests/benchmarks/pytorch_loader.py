"""PyTorch baseline of `mllm-jax bench --data`: a torch DataLoader with transformers' processor.

A `torch.utils.data.DataLoader` over LLaVA JSON: PIL opens a picture, the CLIP image processor of
transformers makes its pixels, the tokenizer's chat template the text, every `<image>` is widened to
its patches, labels are -100 outside of the answers, rows are padded to the longest of a batch.
Prints one JSON object with the field names of `mllm-jax bench --data`.

    python tests/benchmarks/pytorch_loader.py --data a.json --images DIR --tokenizer DIR --workers 2
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  # a test extra of Python 3.11
from PIL import Image
from torch.utils.data import DataLoader, Dataset  # pyright: ignore[reportMissingImports]
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

ROLES = {"human": "user", "gpt": "assistant"}


class Conversations(Dataset):
    """Records -> input ids, labels, pixels."""

    def __init__(self, options: argparse.Namespace):
        self.records = json.loads(options.data.read_text(encoding="utf-8"))
        self.images, self.patches = options.images, (options.size // options.patch) ** 2
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(str(options.tokenizer))
        side = {"height": options.size, "width": options.size}
        self.processor = CLIPImageProcessor(size={"shortest_edge": options.size}, crop_size=side)
        self.mark = self.tokenizer.convert_tokens_to_ids("<image>")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record = self.records[number]
        ids: list[int] = []
        labels: list[int] = []
        for turn in record["conversations"]:  # turn by turn, as LLaVA's own code does
            role = ROLES[turn["from"]]
            text = f"<|start_header_id|>{role}<|end_header_id|>\n\n{turn['value']}<|eot_id|>"
            part = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            wide = [x for i in part for x in ([i] * self.patches if i == self.mark else [i])]
            ids += wide
            labels += wide if role == "assistant" else [-100] * len(wide)
        names = record.get("image") or []
        names = [names] if isinstance(names, str) else names
        pixels = []
        for name in names:
            with Image.open(self.images / name) as image:
                made = self.processor(image.convert("RGB"), return_tensors="pt")
            pixels.append(made["pixel_values"][0])
        return {"ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixels": pixels}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Pads to the longest of a batch."""
    pad = torch.nn.utils.rnn.pad_sequence
    pixels = [picture for item in items for picture in item["pixels"]]
    return {
        "ids": pad([item["ids"] for item in items], batch_first=True),
        "labels": pad([item["labels"] for item in items], batch_first=True, padding_value=-100),
        "pixels": torch.stack(pixels) if pixels else torch.zeros(0),
        "records": len(items),
    }


def cpu_seconds() -> float:
    """Of this process and of workers that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--images", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--workers", type=int, default=0)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--size", type=int, default=336)
    p.add_argument("--patch", type=int, default=14)
    options = p.parse_args()
    torch.set_num_threads(1)
    records = Conversations(options)
    loader = DataLoader(
        records, options.batch, shuffle=True, num_workers=options.workers, collate_fn=collate
    )
    seen = images = 0
    start, before = time.perf_counter(), cpu_seconds()
    for _ in range(options.epochs):
        for batch in loader:
            seen, images = seen + batch["records"], images + len(batch["pixels"])
    seconds, used = time.perf_counter() - start, cpu_seconds() - before
    print(
        json.dumps(
            {
                "baseline": "torch DataLoader + transformers",
                "torch": torch.__version__,
                "workers": options.workers,
                "records_per_second": round(seen / seconds, 1),
                "images_per_second": round(images / seconds, 1),
                "images_per_cpu_second": round(images / used, 1),
                "seconds": round(seconds, 2),
                "cpu_seconds": round(used, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
