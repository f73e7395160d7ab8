"""What a GPU has to show, in order of worth: kernels, then speed beside PyTorch, then memory.

    python -m tests.benchmarks.on_gpu OUT                     everything
    python -m tests.benchmarks.on_gpu OUT --only kernels,8b   these alone
    python -m tests.benchmarks.on_gpu OUT --list              the commands

Each command is a process of its own with a time limit. What it prints goes to OUT/NAME.log, its
results to OUT/results.jsonl as they come, with the name: a run that is cut off leaves what it had.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 400  # seconds of a command; a program of 8B compiles in half a minute
ENVIRONMENT = {"MLLM_JAX_TEST_GPU": "1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
# full fine-tuning of 8B on one card; PyTorch's moments are in the format of its parameters
FEW_BYTES = "--optimizer.moments int8 --optimizer.rounding stochastic --compute.gradients bfloat16"
TESTS = {  # group -> files
    "kernels": "tests/models/kernels",
    "runs": "tests/training/test_limited_rows.py tests/training/test_on_gpu.py",
}
STEPS = {  # group -> flags of both, of PyTorch's step, of ours
    "8b": (
        "--size 8b --length 2048",
        "--batch 1 --remat",
        f"--batch 4,8 --remat full,attention,dots {FEW_BYTES}",
    ),
    "1b-long": (
        "--size 1b --length 4096 --batch 4",
        "--remat",
        "--remat full,none --attention auto,cudnn,triton,blocks",
    ),
    "1b": ("--size 1b --length 2048 --batch 8", "--remat", "--remat full --attention auto,blocks"),
    "8b-align": ("--size 8b --stage align --length 2048 --batch 8", "--remat", "--remat full"),
    "8b-lora": ("--size 8b --lora 64 --length 2048 --batch 4", "--remat", "--remat full,dots"),
    "small": ("--size small --length 1024 --batch 8", "", "--attention auto,blocks"),
}


class Command(NamedTuple):
    """One process."""

    group: str  # what --only names
    name: str
    words: list[str]  # after python -m


def commands() -> list[Command]:
    """In order of worth; PyTorch's step right after ours, on the same card."""
    listed = []
    for group, files in TESTS.items():
        listed.append(Command(group, group, ["pytest", "-q", "-m", "gpu", *files.split()]))
    for group, (shared, theirs, ours) in STEPS.items():
        both = [*shared.split(), "--dtype", "bfloat16", "--steps", "5"]
        torch = ["tests.benchmarks.pytorch_baseline", *both, "--device", "cuda", *theirs.split()]
        listed.append(Command(group, f"{group}-ours", ["mllm_jax", "bench", *both, *ours.split()]))
        listed.append(Command(group, f"{group}-pytorch", torch))
        listed.append(Command(group, f"{group}-pytorch-compiled", [*torch, "--compile"]))
    return listed


def run(command: Command, out: Path, limit: float = LIMIT) -> bool:
    """One command; whether it succeeded."""
    start, log = time.perf_counter(), out / f"{command.name}.log"
    with log.open("w") as written:
        try:
            code: int | str = subprocess.run(
                [sys.executable, "-m", *command.words],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT,
                stdout=written,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"no end after {limit:g} s"
    steps = command.words[0] != "pytest"
    objects = [line for line in log.read_text().splitlines() if line.startswith('{"') and steps]
    with (out / "results.jsonl").open("a") as results:
        for line in objects:
            results.write(json.dumps({"name": command.name, **json.loads(line)}) + "\n")
    said = "ok" if code == 0 else f"FAILED ({code}), see {log}"
    print(f"{command.name}: {said}, {time.perf_counter() - start:.0f} s", flush=True)
    return code == 0


def main(words: Sequence[str] | None = None) -> int:
    """Runs them, whatever became of the others; 1 if one failed."""
    parser = argparse.ArgumentParser(description="measures on a GPU what is kept for one")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", metavar="GROUP[,GROUP]")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(words)
    groups = [*TESTS, *STEPS]
    only = [group for group in options.only.split(",") if group] or groups
    if unknown := sorted({*only} - {*groups}):
        parser.error(f"--only {','.join(unknown)}: there are {', '.join(groups)}")
    chosen = [command for command in commands() if command.group in only]
    if options.list:
        print("\n".join(f"{command.name}: {' '.join(command.words)}" for command in chosen))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    ended = [run(command, options.out) for command in chosen]
    return int(not all(ended))


if __name__ == "__main__":
    raise SystemExit(main())
