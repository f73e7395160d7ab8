"""Which backend `auto` takes, by platform and shape, and how a backend that cannot is refused."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.models.kernels import select, tokamax
from mllm_jax.models.kernels.protocol import Backend, Call, Device
from mllm_jax.models.kernels.select import Selection

CALL = Call(2, 2048, 32, 8, 128, "bfloat16", causal=True, packed=True)


@pytest.mark.parametrize(
    ("platform", "length", "expected"),
    [
        ("cpu", select.SHORT, "blocks"),
        ("cpu", select.SHORT + 1, "loop"),
        ("tpu", 64, "splash"),
    ],
)
def test_auto_goes_by_platform_and_shape(platform, length, expected):
    call = CALL._replace(length=length)
    assert Selection("auto", Device(platform)).backend(call) == expected
    assert Selection("blocks", Device(platform)).backend(call) == "blocks"


@pytest.mark.parametrize(
    ("capability", "changes", "expected"),
    [
        ((9, 0), {"segments": 16}, "cudnn"),
        ((9, 0), {}, "tokamax"),  # cuDNN needs a limit of examples in a row
        ((9, 0), {"parts": 2}, "tokamax"),
        ((10, 0), {}, "triton"),
        ((8, 0), {"segments": 16}, "triton"),
        ((8, 0), {"packed": False, "causal": False, "length": 577}, "cudnn"),
        ((8, 0), {"parts": 2}, "blocks"),
        ((8, 0), {"head_dim": 72}, "blocks"),
        ((9, 0), {"dtype": "float32", "segments": 16}, "blocks"),
        ((7, 5), {}, "blocks"),
        (None, {}, "blocks"),
    ],
)
def test_auto_on_gpus_takes_the_first_kernel_that_can(monkeypatch, capability, changes, expected):
    monkeypatch.setattr(tokamax, "PACKAGE", "jax")  # which is installed
    call = CALL._replace(**changes)
    assert Selection("auto", Device("gpu", capability), call.segments).backend(call) == expected


def test_auto_goes_without_tokamax_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(tokamax, "PACKAGE", "absent_package")
    assert Selection("auto", Device("gpu", (9, 0))).backend(CALL) == "triton"


def test_what_cannot_be_exact_is_refused():
    exact = CALL._replace(dtype="float32")
    assert Selection("auto", Device("tpu")).backend(exact) == "blocks"
    message = "compute.attention=splash: computes float32 products in bfloat16; choose blocks"
    with pytest.raises(ConfigError, match=message):
        Selection("splash", Device("tpu")).backend(exact)


def test_a_backend_that_cannot_is_refused_in_one_line(monkeypatch):
    def refuses(call: Call, device: Device, /) -> str | None:
        return f"needs a TPU, not a {device.platform}" if call.causal else None

    dense = select.BACKENDS["dense"]
    monkeypatch.setitem(select.BACKENDS, "dense", Backend(dense.run, refuses, dense.score_bytes))
    assert Selection("dense").backend(CALL._replace(causal=False)) == "dense"
    message = "compute.attention=dense: needs a TPU, not a cpu; choose loop"
    with pytest.raises(ConfigError, match=message):
        Selection("dense").backend(CALL)
