"""`compute.remat: offload`: what is kept for the backward pass leaves the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import hardware, table
from mllm_jax.preflight import report as preflight
from mllm_jax.preflight.plans import Plans
from tests.support import valid_config

REMATS = ("full", "attention", "offload")
# deep enough that what is kept is more than all other temporary memory
FLAGS = ("--data.length", "256", "--data.image_slots", "2", "--data.rows", "64")
FLAGS += ("--model.language.layers", "64", "--model.language.width", "256")
FLAGS += ("--compute.attention", "blocks", "--compute.loss_chunk", "64")
LAYERS, LENGTH, WIDTH, HEADS, HEAD_DIM = 64, 256, 256, 4, 16
COMPILE = """
import json, sys
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import hardware
from mllm_jax.preflight.plans import Plans
path, word, flags = json.loads(sys.argv[1])
target = hardware.parse(word)
plans = Plans(loading.load(Config, path, flags), target, hardware.find_devices(target))
program, formula = plans.compiled(plans.configured), plans.memory(plans.configured)
print(json.dumps([program.memory["temporary"], program.host, formula.host]))
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
    """What the host has, by the program's own figures, is more than the device has of all."""
    flags = (*FLAGS, *flags, "--compute.remat", "offload")
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps([str(valid_config.write(folder)), word, flags])],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    temporary, host, formula = json.loads(run.stdout)
    assert host == pytest.approx(formula, rel=0.05)
    assert temporary < host


@pytest.mark.usefixtures("gpu_compiler")
def test_compiled_for_gpus_that_are_not_here(tmp_path: Path):
    leaves_the_device(tmp_path, "h100:8", "--mesh.data", "2", "--mesh.fsdp", "4")


@pytest.mark.usefixtures("libtpu")
def test_compiled_for_tpus_that_are_not_here(tmp_path: Path):
    leaves_the_device(tmp_path, "v5e:2x2", "--mesh.data", "2", "--mesh.fsdp", "2")
