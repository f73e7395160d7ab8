"""Descriptions of GPUs for the compiler, and what is said where it is not installed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.hardware import CHIPS
from mllm_jax.preflight import gpu_target, hardware, table
from tests.support import valid_config

DESCRIBED = [name for name, chip in CHIPS.items() if chip.cores is not None]
HERE: dict[str, str] = dict.fromkeys(gpu_target.COMPILER, jax.__version__)
HERE |= {gpu_target.CUDA: "12.9.79", gpu_target.CUDNN: "9.28.0.42"}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, to be changed."""
    have = dict(HERE)
    monkeypatch.setattr(
        gpu_target, "installed", lambda *names: {n: have[n] for n in names if n in have}
    )
    return have


@pytest.mark.parametrize("name", DESCRIBED)
@pytest.mark.usefixtures("packages")
def test_a_description_has_the_chips_numbers(name: str):
    chip = CHIPS[name]
    assert chip.cores is not None and chip.memory is not None and chip.bandwidth is not None
    text = gpu_target.describe(chip.kind, chip.cores)
    numbers = dict(re.findall(r"(\w+): ([\d.]+)", text))
    assert int(numbers["core_count"]) == chip.cores.count
    assert int(numbers["shared_memory_per_block_optin"]) == chip.cores.shared_memory - 1024
    assert "runtime_version { major: 12 minor: 9 }" in text
    assert "dnn_version_info { major: 9 minor: 28 }" in text
    # what the driver reports is near what the data sheet says
    assert int(numbers["device_memory_size"]) == pytest.approx(chip.memory, rel=0.08)
    assert int(numbers["memory_bandwidth"]) == pytest.approx(chip.bandwidth, rel=0.05)


def test_the_chips_that_are_described():
    assert DESCRIBED == ["a100", "h100", "h200", "b200"]
    assert "L4" in str(gpu_target.missing(CHIPS["l4"]))


def test_all_packages_of_this_jax(packages: dict[str, str]):
    assert gpu_target.missing(CHIPS["h100"]) is None
    assert gpu_target.name().startswith(f"jax-cuda12-pjrt {jax.__version__} without a GPU")
    del packages[gpu_target.CUDNN]
    assert gpu_target.missing(CHIPS["h100"]) == (
        "not installed: nvidia-cudnn-cu12 (pip install 'mllm-jax[gpu-preflight]')"
    )


def test_a_compiler_of_another_jax(packages: dict[str, str]):
    packages["jax-cuda12-pjrt"] = "0.9.99"
    with pytest.raises(ConfigError, match=r"jax-cuda12-pjrt 0\.9\.99 does not belong to JAX"):
        gpu_target.missing(CHIPS["h100"])


def test_checks_answer_for_the_chip_within_and_for_this_machine_after():
    from jax._src.cudnn import fused_attention_stablehlo as checks

    before = checks.check_compute_capability
    with gpu_target.as_if_here(CHIPS["h100"]):
        assert checks.check_compute_capability("9.0")
        assert not checks.check_compute_capability("10.0")
        assert not checks.is_cuda_compute_capability_equal("10.3")
    with gpu_target.as_if_here(CHIPS["a100"]):
        assert not checks.check_compute_capability("9.0")
    assert checks.check_compute_capability is before


def test_without_the_compiler_the_devices_say_why(packages: dict[str, str]):
    packages.clear()
    devices = hardware.find_devices(hardware.parse("h100:8"))
    assert not devices.compiles and len(devices.devices) == 8
    assert devices.reason is not None and "pip install 'mllm-jax[gpu-preflight]'" in devices.reason


# ------------------------------------------------------------------------------------ the compiler


@pytest.mark.usefixtures("gpu_compiler")
@pytest.mark.parametrize("attention", ["auto", "cudnn"])
def test_a_step_compiled_for_gpus_that_are_not_here(tmp_path: Path, attention: str):
    """Arguments as the formula has them; every layer's weights are gathered by the program."""
    flags = ("--data.rows", "16", "--data.image_slots", "2", "--mesh.data", "1", "--mesh.fsdp", "8")
    flags += ("--compute.attention", attention, "--model.vision.heads", "3")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mllm_jax", "preflight", "--json", "--hardware", "h100:8"),
            *("--config", str(valid_config.write(tmp_path)), *flags),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    assert all(line.startswith("preflight: ") for line in run.stderr.splitlines()), run.stderr
    result = json.loads(run.stdout)
    assert result["basis"].startswith("compiled by jax-cuda12-pjrt")
    memory = result["memory"]
    held = sum(memory["formula"][name] for name in table.HELD)
    assert held <= memory["compiler"]["arguments"] <= 1.1 * held
    assert result["collectives"]["all-gather"]["operations"] >= 2 * 3
