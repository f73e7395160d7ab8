"""tokamax's attention: what it is told of rows, and what it refuses.

Its kernels for GPUs cannot be interpreted. Here its reference takes their place, an operation of
the same kind with the same masks, sums and gradients; `test_gpu_programs` compiles the kernels, and
on a GPU `test_cudnn.test_on_gpus` runs them.
"""

import functools
import logging
import sys
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models import layers
from mllm_jax.models.kernels import select, tokamax
from mllm_jax.models.kernels.protocol import Backend, Call, Device, refuses_nothing
from mllm_jax.models.kernels.select import Selection
from tests.support.attention import SEGMENTS, against_dense, arrays, eight_devices_are_one
from tests.support.attention_parts import case, compare

pytest.importorskip("tokamax", reason="needs tokamax: pip install 'mllm-jax[tokamax]'")

H100 = Device("gpu", (9, 0))
CALL = Call(2, 2048, 32, 8, 128, "bfloat16", causal=True, packed=True)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """tokamax's operation in plain JAX instead of the kernel."""
    from tokamax._src.ops.attention import base

    _, mask = tokamax._kernel()
    operation = base.DotProductAttention(vjp=base.DotProductAttentionVjp())
    monkeypatch.setattr(tokamax, "_kernel", lambda: (operation, mask))
    # it promotes ranks, and its gradient uses what JAX is about to drop
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def test_spans_by_hand():
    first, behind = tokamax.spans(jnp.array([[1, 1, 2, 2, 2, 0, 3, 0]]))
    assert first.tolist() == [[0, 0, 2, 2, 2, 5, 6, 7]]
    assert behind.tolist() == [[2, 2, 5, 5, 5, 6, 7, 8]]
    assert first.dtype == behind.dtype == jnp.int32


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("causal", [True, False])
def test_packed_rows_are_those_of_dense(causal: bool):
    """Outputs and gradients, grouped queries; nothing reaches padding or comes back from it."""
    against_dense(tokamax.attend, arrays(3, 40, 4, 2, 8), jnp.asarray(SEGMENTS), causal)


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("length", [41, 128])
def test_whole_images(length: int):
    """Padded to whole blocks, as CLIP's 577 positions, and of whole blocks."""
    against_dense(tokamax.attend, arrays(1, length, 2, 2, 16), None, False)


@pytest.mark.usefixtures("reference")
def test_a_row_that_devices_share():
    """Parts of 48 queries, padded to a block, over keys of the whole row."""
    compare(tokamax.attend_part, 2, *case(96), 2e-5)


@pytest.mark.usefixtures("reference")
def test_attention_is_kept_where_the_policy_says_so():
    """Its results have names for `jax.checkpoint`: it is computed once, not twice."""
    q, k, v, _ = arrays(1, 128, 2, 1, 8)
    products = {}
    for remat in ("full", "attention"):
        run = functools.partial(tokamax.attend, segments=None, causal=True)
        kept = jax.checkpoint(run, policy=layers.REMAT[remat])
        loss = jax.grad(lambda q, kept=kept: jnp.sum(kept(q, k, v) ** 2))
        text = jax.jit(loss).lower(q).as_text()
        products[remat] = text.count("dot_general")
    assert products["attention"] == products["full"] - 2  # the scores and their sum with values


@pytest.mark.slow
@pytest.mark.usefixtures("reference")
def test_eight_devices_are_one(monkeypatch: pytest.MonkeyPatch, make_mesh):
    backend = Backend(tokamax.attend, refuses_nothing, tokamax.score_bytes)
    monkeypatch.setitem(select.BACKENDS, "tokamax", backend)
    segments = jnp.asarray(np.concatenate([SEGMENTS, SEGMENTS[:1]]))
    inputs = arrays(4, 40, 4, 2, 8)
    eight_devices_are_one(Selection("tokamax"), inputs, segments, make_mesh)


def test_the_command_line_is_not_read(monkeypatch: pytest.MonkeyPatch):
    """tokamax's options are flags of absl, which would refuse those of `mllm-jax`."""
    from tokamax._src import config

    monkeypatch.setattr(sys, "argv", ["mllm-jax", "train", "--config", "stage.yaml"])
    tokamax._kernel()
    assert config.autotuning_cache_miss_fallback.value == "heuristics"


def test_shapes_that_were_not_tuned_are_not_logged(caplog: pytest.LogCaptureFixture):
    tokamax._kernel()
    log = logging.getLogger("absl")
    with caplog.at_level(logging.WARNING, logger="absl"):
        log.warning("Autotuning cache miss for %s", "a page")
        log.warning("something else")
    assert caplog.messages == ["something else"]


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, H100, None),
        ({}, Device("tpu"), "needs a GPU, not a tpu"),
        ({"dtype": "float32"}, H100, "computes bfloat16 and float16, not float32"),
        ({}, Device("gpu", (8, 0)), "needs compute capability 9.x, this GPU's is 8.0"),
        ({}, Device("gpu", (10, 0)), "needs compute capability 9.x, this GPU's is 10.0"),
        ({}, Device("gpu"), "needs compute capability 9.x, this GPU's is unknown"),
        ({"head_dim": 256}, H100, "needs head widths up to 128, not 256"),
    ],
)
def test_what_it_refuses(changes, device, reason):
    assert tokamax.refuses(CALL._replace(**changes), device) == reason


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokamax, "PACKAGE", "absent_package")
    expected = "is not installed (pip install 'mllm-jax[tokamax]')"
    assert tokamax.refuses(CALL, H100) == expected


def test_bytes_that_preflight_counts():
    sums = 3 * 4 * 2 * 2048 * 32
    assert tokamax.score_bytes(CALL) == tokamax.score_bytes(CALL._replace(parts=4)) == sums
    assert tokamax.score_bytes(CALL._replace(length=2000)) == sums
