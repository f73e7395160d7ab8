"""`compute.remat: offload`: what is kept for the backward pass leaves the device."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import hardware, table
from mllm_jax.preflight import report as preflight
from mllm_jax.preflight.plans import Plans
from tests.support import valid_config

REMATS = ("full", "attention", "offload")
# deep and long enough that what is kept is most of the temporary memory
FLAGS = ("--data.length", "512", "--data.image_slots", "2", "--data.rows", "64")
FLAGS += ("--model.language.layers", "24", "--model.language.width", "256")
FLAGS += ("--compute.attention", "blocks", "--compute.loss_chunk", "64")
LAYERS, LENGTH, WIDTH, HEADS, HEAD_DIM = 24, 512, 256, 4, 16
COMPILE = """
import json, sys
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import hardware
from mllm_jax.preflight.plans import Plans
path, word, flags, remats = json.loads(sys.argv[1])
target = hardware.parse(word)
plans = Plans(loading.load(Config, path, flags), target, hardware.find_devices(target))
for remat in remats:
    setting = plans.configured._replace(remat=remat)
    program, formula = plans.compiled(setting), plans.memory(setting)
    compiled = {"temporary": program.memory["temporary"], "host": program.host}
    print(json.dumps([compiled, {"temporary": formula.temporary, "host": formula.host}]))
"""


def plans(folder: Path, word: str, *flags: str) -> Plans:
    target = hardware.parse(word)
    config = loading.load(Config, valid_config.write(folder), [*FLAGS, *flags])
    return Plans(config, target, hardware.find_devices(target))


def test_the_host_has_inputs_and_attention_and_the_device_has_not(tmp_path: Path):
    here = plans(tmp_path, "h100:8")
    full, attention, offload = (
        here.memory(here.configured._replace(remat=remat)) for remat in REMATS
    )
    rows, size = 64 // 8, 2  # of a device; bfloat16
    inputs = rows * LAYERS * LENGTH * WIDTH * size
    outputs = rows * LAYERS * LENGTH * HEADS * (HEAD_DIM * size + 4)  # and log-sums, float32
    assert (full.host, attention.host, offload.host) == (0, 0, inputs + outputs)
    assert attention.activations - full.activations == outputs
    assert full.activations - offload.activations == inputs


def test_a_cpu_has_one_memory(tmp_path: Path):
    here = plans(tmp_path, "cpu:8")
    attention, offload = (here.memory(here.configured._replace(remat=r)) for r in REMATS[1:])
    assert offload == attention


def test_the_host_has_a_line(tmp_path: Path):
    config = loading.load(Config, valid_config.write(tmp_path), [*FLAGS])
    result = preflight.estimate(config, "h100:8")
    assert result["memory"]["host"] == 0
    assert "the host's memory" not in table.render(result)
    config = loading.load(
        Config, valid_config.write(tmp_path), [*FLAGS, "--compute.remat", "offload"]
    )
    result = preflight.estimate(config, "h100:8")
    size = table.size(result["memory"]["host"])
    assert f"in the host's memory, pinned: {size} for each device" in table.render(result)


def leaves_the_device(folder: Path, word: str, *flags: str) -> None:
    """A program's own figures: less temporary memory than with `full`, and the host's."""
    asked = [str(valid_config.write(folder)), word, [*FLAGS, *flags], ("full", "offload")]
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    lines: list[Any] = [json.loads(line) for line in run.stdout.splitlines()]
    (full, _), (offload, formula) = lines
    assert full["host"] == 0
    assert offload["host"] == pytest.approx(formula["host"], rel=0.05)
    assert offload["temporary"] < 0.75 * full["temporary"]


@pytest.mark.usefixtures("gpu_compiler")
def test_compiled_for_gpus_that_are_not_here(tmp_path: Path):
    leaves_the_device(tmp_path, "h100:8", "--mesh.data", "2", "--mesh.fsdp", "4")


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("word", ["v5e:2x2", pytest.param("v5p:2x2x1", marks=pytest.mark.slow)])
def test_compiled_for_tpus_that_are_not_here(tmp_path: Path, word: str):
    leaves_the_device(tmp_path, word, "--mesh.data", "2", "--mesh.fsdp", "2")
