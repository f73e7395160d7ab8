"""The formula beside the figures that compilers printed: docs/results/preflight-*.jsonl."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
# what a record does not say: the stage file, and what the program of its day did otherwise
BLOCKS = ("--compute.attention", "blocks")
BEFORE = ("--compute.reduce", "bfloat16")  # the head's and the kernels' gradients, 2026-11-21
FILES = {
    "preflight-2026-11-21.jsonl": (None, (*BLOCKS, *BEFORE)),
    "preflight-latxa-instruct-2026-11-26.jsonl": ("latxa_instruct/instruct.yaml", BLOCKS),
    "preflight-ndino-2026-11-26.jsonl": ("ndino", BLOCKS),
    "preflight-gpu-2026-11-26.jsonl": (None, BLOCKS),
    "preflight-gpu-cudnn-2026-11-26.jsonl": (None, ("--compute.attention", "cudnn")),
    "preflight-gpu-tokamax-2026-11-26.jsonl": (None, ("--compute.attention", "tokamax")),
    "preflight-tpu-2026-11-26.jsonl": (None, ()),  # `auto`: splash
    "preflight-long-rows-2026-11-26.jsonl": (None, ()),
    "preflight-remat-2026-11-26.jsonl": (None, ()),
}
WITHIN = 0.1  # of the whole
# what the formula does not meet: (records, hardware, stage file, rows) -> its share of the printed
TPU, GPU = "preflight-tpu-2026-11-26.jsonl", "preflight-gpu-2026-11-26.jsonl"
TOKAMAX = "preflight-gpu-tokamax-2026-11-26.jsonl"
LONG = "preflight-long-rows-2026-11-26.jsonl"
MISSED = {
    # with `data` 1 libtpu scatters float32 gradients by permutes, which hold 1.8 GiB more
    (TPU, "v5e:4x4", "configs/basque/instruct.yaml", "16 x 2048"): 0.889,
    # libtpu prints 0.5 GiB more than its program holds: its peak is 2.9 GiB, docs/preflight.md
    (TPU, "v5e:16x16", "configs/basque/align.yaml", "256 x 2048"): 0.88,
    (TPU, "v5p:4x4x4", "configs/basque/align.yaml", "256 x 2048"): 0.87,
    (TPU, "v6e:8x8", "configs/basque/align.yaml", "256 x 2048"): 0.88,
    (TPU, "v5e:16x16", "configs/basque/align.yaml", "256 x 4096"): 0.86,
    (TPU, "v5p:4x4x4", "configs/basque/align.yaml", "128 x 4096"): 0.85,
    (TPU, "v6e:8x8", "configs/basque/align.yaml", "128 x 4096"): 0.87,
    # 9 and 5 GiB too much where a device has 65,536 or 32,768 tokens at once
    (TOKAMAX, "h100:8", "configs/basque/align.yaml", "64 x 8192"): 1.32,
    (TOKAMAX, "h200:1", "configs/basque/align.yaml", "8 x 32768"): 1.18,
    # 3.3 GiB too much where a device has eight rows of 4,096 at once
    (TOKAMAX, "h100:8", "configs/basque/instruct.yaml", "64 x 4096"): 1.10,
    # on GPUs the masks of all blocks of attention, and what stands in for hidden scores, in
    # float32, are in memory while the layers' first pass goes through them: 5.6 GiB and 90 GiB
    (GPU, "h100:8", "configs/basque/align.yaml", "64 x 8192"): 0.67,
    (LONG, "h200:1", "configs/basque/instruct.yaml", "8 x 32768"): 0.88,
}
ESTIMATE = """
import functools, json, sys
from contextlib import nullcontext
import jax
jax.config.update("jax_num_cpu_devices", 256)
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import gpu_target, hardware
from mllm_jax.preflight.plans import Plans
for line in sys.stdin:
    path, word, flags = json.loads(line)
    target = hardware.parse(word)
    tracing = functools.partial(gpu_target.as_if_here, target.chip)
    tracing = nullcontext if target.chip.cores is None else tracing
    devices = hardware.Devices(jax.devices()[: target.count], False, tracing=tracing)
    plans = Plans(loading.load(Config, path, flags), target, devices)
    print(plans.memory(plans.configured).total, flush=True)
"""


def stage_file(name: str, result: dict[str, Any]) -> str:
    stage, _ = FILES[name]
    if stage is None:
        return result["config"]
    if stage == "ndino":
        stage = f"ndino/{result['stages'][0]}.yaml"
    elif result["setting"]["rows"] == 512:  # the 70B stage
        stage = "latxa_instruct_70b/instruct.yaml"
    return f"configs/{stage}"


def flags(name: str, result: dict[str, Any]) -> list[str]:
    if result.get("flags"):
        named = result["flags"].split()
        if "--compute.attention" in named:
            return named
        # `auto` was `blocks` on GPUs
        return [*named, *(BLOCKS if result["chip"]["platform"] == "gpu" else FILES[name][1])]
    setting = result["setting"]
    values = {f"--mesh.{axis}": count for axis, count in setting["mesh"].items()}
    values |= {f"--data.{key}": setting[key] for key in ("rows", "length", "image_slots")}
    values["--train.microbatches"] = setting["microbatches"]
    return [*(str(word) for pair in values.items() for word in pair), *FILES[name][1]]


@pytest.mark.slow
def test_the_formula_is_within_a_tenth_of_what_compilers_printed():
    lines, printed, names = [], [], []
    for name in FILES:
        for result in map(json.loads, (RESULTS / name).read_text().splitlines()):
            if (compiler := result["memory"]["compiler"]) is None:
                continue
            stage, hardware = stage_file(name, result), result["hardware"]
            rows = f"{result['setting']['rows']} x {result['setting']['length']}"
            lines.append(json.dumps([stage, hardware, flags(name, result)]))
            printed.append(compiler["arguments"] + compiler["temporary"])
            names.append((name, hardware, stage, rows))
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", ESTIMATE],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=RESULTS.parents[1],
        env=env | {"JAX_PLATFORMS": "cpu"},
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    totals = [int(line) for line in run.stdout.split()]
    shares = [total / size for total, size in zip(totals, printed, strict=True)]
    assert len(shares) >= 15
    far = [(name, s) for name, s in zip(names, shares, strict=True) if abs(s - 1) > WITHIN]
    assert {name for name, _ in far} == set(MISSED), far
    assert [share for _, share in far] == pytest.approx([MISSED[n] for n, _ in far], abs=0.01)
