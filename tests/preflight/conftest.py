"""Tests here estimate for GPUs by formula, whatever is installed, unless they ask for more."""

import importlib.util
import os

import pytest

from mllm_jax.preflight import gpu_target


@pytest.fixture(autouse=True)
def _no_gpu_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_target, "installed", lambda *names: {})


@pytest.fixture
def libtpu() -> None:
    """libtpu belongs to the [tpu] extra: installed, it warns at every start of JAX elsewhere."""
    reason = "needs libtpu (pip install 'mllm-jax[tpu]'); .ci/run lends it to these tests"
    _needs("libtpu", reason, "MLLM_JAX_REQUIRE_LIBTPU")


@pytest.fixture
def gpu_compiler() -> None:
    """5 GB of wheels, which the ordinary environment does not have."""
    reason = "needs JAX's CUDA flavour on the path (pip install 'mllm-jax[gpu-preflight]')"
    _needs("jax_cuda12_plugin", reason, "MLLM_JAX_REQUIRE_GPU_WHEELS")


def _needs(module: str, reason: str, variable: str) -> None:
    """Skips a test without the module; where the variable is 1, the test fails."""
    if importlib.util.find_spec(module) is not None:
        return
    if os.environ.get(variable) == "1":
        pytest.fail(f"{reason}, and {variable}=1 asks for it")
    pytest.skip(reason)
