"""The Triton kernel, interpreted on this machine, against dense attention in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models.kernels import select, triton
from mllm_jax.models.kernels.protocol import Backend, Call, Device, refuses_nothing
from mllm_jax.models.kernels.select import Selection
from tests.support.attention import against_dense, arrays, eight_devices_are_one

A100 = Device("gpu", (8, 0))
CALL = Call(2, 2048, 32, 8, 128, "bfloat16", causal=True, packed=True)
interpreted = functools.partial(triton.attend, interpret=True)


def test_packed_rows_with_grouped_queries_and_padding():
    """Two blocks of 128; the row ends in the second."""
    segments = np.zeros((2, 200), np.int32)
    segments[0, :60], segments[0, 60:150], segments[1] = 1, 2, 1
    against_dense(interpreted, arrays(2, 200, 4, 2, 16), jnp.asarray(segments), True)


def test_whole_images_of_a_length_that_is_no_multiple_of_a_block():
    """As CLIP's 577 positions: padded, not causal."""
    against_dense(interpreted, arrays(1, 41, 2, 2, 16), None, False)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [64, 256, 577])
def test_other_lengths_without_segments(length, causal):
    against_dense(interpreted, arrays(1, length, 2, 1, 64), None, causal)


@pytest.mark.slow
def test_eight_devices_are_one(monkeypatch, make_mesh):
    backend = Backend(interpreted, refuses_nothing, triton.score_bytes)
    monkeypatch.setitem(select.BACKENDS, "triton", backend)
    segments = np.ones((4, 160), np.int32)
    segments[0, 90:], segments[1, 100:], segments[2, 30:150] = 2, 0, 2
    inputs = arrays(4, 160, 4, 2, 16)
    eight_devices_are_one(Selection("triton"), inputs, jnp.asarray(segments), make_mesh)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 32), (32, 32), (40, 64), (128, 128), (577, 640), (2048, 2048)]
)
def test_rows_are_padded_to_whole_blocks(length, expected):
    assert triton.padded(length) == expected


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, A100, None),
        ({}, Device("tpu"), "needs a GPU, not a tpu"),
        ({"dtype": "float32"}, A100, "computes float32 products in TF32"),
        ({}, Device("gpu", (7, 5)), "needs compute capability 8.0 or newer, this GPU's is 7.5"),
        ({"head_dim": 72}, A100, "needs head widths of 16, 32, 64, 128, not 72"),
    ],
)
def test_what_it_refuses(changes, device, reason):
    assert triton.refuses(CALL._replace(**changes), device) == reason


def test_a_jax_without_the_kernel(monkeypatch):
    monkeypatch.setattr(triton, "MODULE", "jax.experimental.pallas.ops.absent")
    assert triton.refuses(CALL, A100) == f"is not part of JAX {jax.__version__}"


def test_bytes_that_preflight_counts():
    sums = 2 * 4 * 2 * 2048 * 32
    assert triton.score_bytes(CALL._replace(kv_heads=32)) == sums
    assert triton.score_bytes(CALL) == sums + 8 * 2 * 2048 * 32 * 128
