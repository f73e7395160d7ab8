"""Times our step and PyTorch's in turn: `mllm-jax bench --size SIZE --baseline`.

PyTorch's is tests/benchmarks/pytorch_baseline.py of a clone: the installed package has no PyTorch
in it. Every measurement is a process of its own, so that neither holds memory, threads or a GPU
while the other is timed.

    first    ours; PyTorch with each number of threads, compiled and not     its best is kept
    rounds   PyTorch, ours, PyTorch, ours, ...                               medians, ratio
"""

import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mllm_jax
from mllm_jax.commands.bench.request import ROUNDS, SIZED, Request
from mllm_jax.common.errors import RunError, one_line, require
from mllm_jax.common.folders import check_file, write_whole
from mllm_jax.common.log import Log
from mllm_jax.common.markdown import markdown_table

SCRIPT = Path("tests/benchmarks/pytorch_baseline.py")
MODULE = ".".join(SCRIPT.with_suffix("").parts)
COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++")  # torch.compile needs one on CPUs


class Variant(NamedTuple):
    """How PyTorch's step is run."""

    threads: int | None  # None: as torch chooses, on GPUs
    compiled: bool

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        return ("torch.compile" if self.compiled else "not compiled") + threads

    @property
    def flags(self) -> list[str]:
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        return threads + (["--compile"] if self.compiled else [])


def main(request: Request) -> None:
    """Measures both in turn; prints every result as a line of JSON, and a table.

    Raises:
        ConfigError: there is no clone or no torch.
        RunError: a measurement failed.
    """
    root = clone()
    if request.json_file is not None:
        check_file(request.json_file)
    log, results = Log(), []

    def keep(result: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(result), flush=True)
        results.append(result)
        return result

    on_gpu = keep({"round": 0, **_ours(request, root)[0]})["platform"] == "gpu"
    best = _best_variant(request, root, on_gpu, log, keep)
    for number in range(1, (request.rounds or ROUNDS) + 1):
        theirs = keep({"round": number, **_theirs(request, root, best, on_gpu)})
        ours = [keep({"round": number, **result}) for result in _ours(request, root)]
        rates = ", ".join(f"{result['tokens_per_second']:,.0f}" for result in ours)
        log(f"round {number}: PyTorch {theirs['tokens_per_second']:,.0f} tokens/s, ours {rates}")
    print(f"\n{_table(results, best)}", end="", file=sys.stderr)
    if request.json_file is not None:
        lines = "".join(json.dumps(result) + "\n" for result in results)
        write_whole(Path(request.json_file), lines)


def clone() -> Path:
    """The folder of the repository that this package is part of.

    Raises:
        ConfigError: it was installed without one, or torch is missing.
    """
    root = Path(mllm_jax.__file__).parents[1]
    require(
        (root / SCRIPT).is_file(),
        f"bench --baseline: {SCRIPT} is not part of the installed package; clone the repository "
        "and `pip install -e .` there",
    )
    for name in ("torch", "transformers"):
        require(
            importlib.util.find_spec(name) is not None,
            f"bench --baseline: needs {name}; `pip install torch` (on CPUs: "
            "--index-url https://download.pytorch.org/whl/cpu)",
        )
    return root


def _best_variant(request: Request, root: Path, on_gpu: bool, log: Log, keep: Any) -> Variant:
    """The fastest of PyTorch's variants that run here, each measured once."""
    cores = len(os.sched_getaffinity(0))
    threads = [None] if on_gpu else sorted({1, (cores + 1) // 2, cores})
    compiling = on_gpu or any(map(shutil.which, COMPILERS))
    if not compiling:
        log("PyTorch, torch.compile: left out: there is no C++ compiler (g++ or clang++) here")
    ways = (False, True) if compiling else (False,)
    rates: dict[Variant, float] = {}
    for variant in [Variant(count, compiled) for compiled in ways for count in threads]:
        try:
            result = keep({"round": 0, **_theirs(request, root, variant, on_gpu)})
        except RunError as error:
            if not variant.compiled:
                raise
            log(f"PyTorch, {variant}: left out: {error}")
            break  # the number of threads is not what is wrong
        rates[variant] = result["tokens_per_second"]
        log(f"PyTorch, {variant}: {rates[variant]:,.0f} tokens/s")
    return max(rates, key=lambda variant: rates[variant])


# ------------------------------------------------------------------------------------ processes


def _theirs(request: Request, root: Path, variant: Variant, on_gpu: bool) -> dict[str, Any]:
    """What the baseline measures."""
    flags = [*_shared(request), *variant.flags]
    flags += ["--length", str(request.length or SIZED["length"])]
    flags += ["--batch", str(*(request.batch or [SIZED["batch"]]))]
    flags += ["--remat"] if set(request.remat) - {"none"} else []
    flags += ["--device", "cuda"] if on_gpu else []
    (result,) = objects([sys.executable, "-m", MODULE, *flags], root, "the PyTorch baseline")
    return {**result, "threads": variant.threads, "compiled": variant.compiled}


def _ours(request: Request, root: Path) -> list[dict[str, Any]]:
    """What `mllm-jax bench` measures, for each of its settings."""
    flags = _shared(request)
    flags += [] if request.length is None else ["--length", str(request.length)]
    for name in ("batch", "attention", "remat"):
        values = getattr(request, name)
        flags += [f"--{name}", ",".join(map(str, values))] if values else []
    flags += request.overrides  # PyTorch's step has none of these options
    command = [sys.executable, "-m", "mllm_jax", "bench", *flags]
    return objects(command, root, "mllm-jax bench")


def _shared(request: Request) -> list[str]:
    """The flags that both take."""
    flags = ["--size", str(request.size), "--steps", str(request.steps)]
    flags += [
        "--stage",
        request.stage or SIZED["stage"],
        "--dtype",
        request.dtype or SIZED["dtype"],
    ]
    flags += ["--lora", str(request.lora)] if request.lora else []
    return flags + (["--text-only"] if request.text_only else [])


def objects(command: Sequence[str], folder: Path, name: str) -> list[dict[str, Any]]:
    """Runs a process; the objects that it prints, one a line.

    Raises:
        RunError: it failed; the message has its last line.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    if process.returncode != 0:
        reasons = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|mllm-jax", line)]
        last = one_line((reasons or lines or [""])[-1], 200)
        raise RunError(f"{name} failed with exit code {process.returncode}: {last}")
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


# ---------------------------------------------------------------------------------------- table


def _table(results: Sequence[dict[str, Any]], best: Variant) -> str:
    """Medians over the rounds, and ours beside PyTorch's: above 1 where ours needs less."""
    rounds = [result for result in results if result["round"] > 0]
    theirs = [result for result in rounds if "baseline" in result]
    ours: dict[str, list[dict[str, Any]]] = {}
    for result in rounds:
        if "baseline" not in result:
            setting = f"attention {result['attention']}, remat {result['remat']}"
            ours.setdefault(setting, []).append(result)
    wall, cpu = _medians(theirs)
    rows = [(f"PyTorch: {best}", f"{wall:.4g}", f"{cpu:.4g}", "1", "1")]
    for setting, measured in ours.items():
        own_wall, own_cpu = _medians(measured)
        ratios = (f"{wall / own_wall:.3f}", f"{cpu / own_cpu:.3f}")
        rows.append((f"ours: {setting}", f"{own_wall:.4g}", f"{own_cpu:.4g}", *ratios))
    head = ("", "s a step", "CPU s a step", "speed by wall time", "by CPU seconds")
    return markdown_table(head, rows)


def _medians(results: Sequence[dict[str, Any]]) -> tuple[float, float]:
    names = ("median_step_seconds", "cpu_seconds")
    wall, cpu = (statistics.median(result[name] for result in results) for name in names)
    return wall, cpu
