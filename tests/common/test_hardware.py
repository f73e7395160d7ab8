"""The chip that a device is, by the name that JAX gives it."""

import pytest

from mllm_jax.common.hardware import CHIPS, chip_name, peak_rate


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peak_rates(kind, rate):
    assert peak_rate(kind) == rate


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_finds_itself_by_its_kind(name: str):
    assert chip_name(CHIPS[name].kind) == name
    assert peak_rate(CHIPS[name].kind) == CHIPS[name].flops
    assert CHIPS[name].source
