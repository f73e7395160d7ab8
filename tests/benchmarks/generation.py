"""Times answers about one picture beside `transformers.generate`: the same weights, in turn.

transformers makes a model of random weights and writes it; we open what it wrote. Every round both
answer the same prompts, one after the other in this process, so that a machine's other work meets
both. Prints a JSON object for each size and batch: seconds of wall time and of processor time,
and how many of the tokens are the same.

    python -m tests.benchmarks.generation --size tiny --size small --json docs/results/FILE.jsonl
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # installed for tests, on Python 3.11
import transformers

from mllm_jax.batch import TEXT
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.bench import work as bench
from mllm_jax.common import host_memory
from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.opened import compute_for
from mllm_jax.models import mllm
from mllm_jax.models.kernels.select import device_of
from tests.benchmarks.pytorch_baseline import build

QUESTION = 31  # tokens of text beside the picture's
NEW = {"tiny": 64, "small": 24}
MEAN, STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Measured(NamedTuple):
    """One answer to all prompts."""

    wall: float  # seconds
    cpu: float  # seconds of all threads
    tokens: list[list[int]]


class Written(Answerer):
    """What transformers wrote, without tokenizer and template: prompts are numbers here."""

    def __init__(self, folder: Path):
        self.path, self.source, self.mesh = folder, open_model(folder), None
        self.config, self.ends = self.source.config.model, ()
        self.compute = compute_for("float32", "cpu")
        self.model = mllm.build(self.config, self.compute, device_of(jax.devices()[0]))


def prompts(size: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [rows, T], the picture first, and pixels [rows, height, width, C]; all different."""
    vision, language = bench.SIZES[size]
    side, patches, vocab = vision[4], (vision[4] // vision[5]) ** 2, language[5]
    rng = np.random.default_rng(0)
    text = rng.integers(0, vocab - 1, (rows, QUESTION))
    tokens = np.concatenate([np.full((rows, patches), vocab - 1), text], axis=1)
    return tokens.astype(np.int32), rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)


def theirs(model: Any, tokens: np.ndarray, pixels: np.ndarray, new: int) -> Any:
    """Their answer as a function without arguments."""
    normal = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    inputs = {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": torch.ones(tokens.shape, dtype=torch.long),
        "pixel_values": torch.from_numpy(normal.transpose(0, 3, 1, 2)).float(),
    }

    def answer() -> list[list[int]]:
        with torch.no_grad():
            out = model.generate(
                **inputs,
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                use_cache=True,
            )
        return out[:, tokens.shape[1] :].tolist()

    return answer


def ours(opened: Answerer, tokens: np.ndarray, pixels: np.ndarray, new: int) -> Any:
    """Our answer as a function without arguments."""
    patches = opened.config.patches
    places = np.arange(tokens.shape[1], dtype=np.int32)
    places[patches:] = TEXT
    weights = np.zeros(tokens.shape[1], np.float32)
    asked = [Encoded(row, weights, places) for row in tokens]
    pictures = [[Tiles(one[None], places[:patches])] for one in pixels]
    return lambda: opened.answer(asked, pictures, new)


def timed(answer: Callable[[], list[list[int]]]) -> Measured:
    """One call."""
    start, before = time.perf_counter(), _cpu()
    tokens = answer()
    return Measured(time.perf_counter() - start, _cpu() - before, tokens)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(size: str, batches: Sequence[int], rounds: int, threads: int) -> Iterator[dict]:
    """A result for each batch."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = build(size).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        opened = Written(folder)
        for rows in batches:
            tokens, pixels = prompts(size, rows)
            new = NEW[size]
            sides = {
                part: {
                    "transformers": theirs(model, tokens, pixels, count),
                    "mllm_jax": ours(opened, tokens, pixels, count),
                }
                for part, count in (("first", 1), ("all", new))
            }
            result = {"size": size, "batch": rows, "prompt": tokens.shape[1], "new": new}
            yield result | {"threads": threads} | in_turn(sides, rounds, rows, new)


def in_turn(sides: dict[str, dict[str, Any]], rounds: int, rows: int, new: int) -> dict[str, Any]:
    """Medians of each side's seconds, and the ratios of both."""
    runs: dict[tuple[str, str], list[Measured]] = {}
    for answers in sides.values():
        for answer in answers.values():
            answer()  # compiles, and settles caches
    for _ in range(rounds):
        for part, answers in sides.items():
            for side, answer in answers.items():
                runs.setdefault((part, side), []).append(timed(answer))
    found: dict[str, Any] = {}
    for (part, side), measured in runs.items():
        for clock in ("wall", "cpu"):
            values = [getattr(one, clock) for one in measured]
            found[f"{side}_{part}_{clock}"] = round(statistics.median(values), 4)
    for clock in ("wall", "cpu"):
        ratio = found[f"transformers_all_{clock}"] / found[f"mllm_jax_all_{clock}"]
        found[f"ratio_{clock}"] = round(ratio, 3)
    for side in ("transformers", "mllm_jax"):
        found[f"{side}_questions_per_second"] = round(rows / found[f"{side}_all_wall"], 3)
        found[f"{side}_tokens_per_second"] = round(rows * new / found[f"{side}_all_wall"], 1)
    pairs = zip(
        *(runs["all", side][0].tokens for side in ("transformers", "mllm_jax")), strict=True
    )
    same = sum(a == b for x, y in pairs for a, b in zip(x, y, strict=True))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return (
        found
        | {"same_tokens": f"{same}/{rows * new}", "rounds": rounds, "jax": jax.__version__}
        | versions
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for and prints it."""
    parser = argparse.ArgumentParser(description="times answers beside transformers.generate")
    parser.add_argument("--size", choices=NEW, action="append", help="default: both")
    parser.add_argument("--batch", type=int, action="append", help="prompts; default: 1 and 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--json", type=Path, help="file to which the lines are added")
    options = parser.parse_args(words)
    host_memory.keep_freed()  # as `mllm-jax` does, for both sides
    for size in options.size or NEW:
        for result in measure(size, options.batch or (1, 8), options.rounds, options.threads):
            line = json.dumps(result)
            print(line, flush=True)
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
