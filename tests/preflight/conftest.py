"""Tests here estimate for GPUs by formula, whatever is installed, unless they ask for more."""

import pytest

from mllm_jax.preflight import gpu_target


@pytest.fixture(autouse=True)
def _no_gpu_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_target, "installed", lambda *names: {})
