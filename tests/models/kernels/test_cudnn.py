"""cuDNN's attention: how rows become sequences, and what it refuses; compiled, not run.

Numbers are those of a stand-in that computes what cuDNN promises (`tests.support.cudnn_contract`).
On a GPU `test_on_gpus` compares the kernel itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.hardware import CHIPS
from mllm_jax.models import layers
from mllm_jax.models.kernels import cudnn, dense, select
from mllm_jax.models.kernels.protocol import Call, Device
from mllm_jax.models.kernels.select import Selection
from mllm_jax.preflight import gpu_target
from tests.support import cudnn_contract
from tests.support.attention import (
    SEGMENTS,
    against_dense,
    arrays,
    eight_devices_are_one,
    outputs,
)

H100 = Device("gpu", (9, 0))
CALL = Call(2, 2048, 32, 8, 128, "bfloat16", causal=True, packed=True, segments=16)


def test_lengths_and_offsets_by_hand():
    segments = jnp.array([[1, 1, 2, 2, 2, 0, 3, 0], [0, 0, 1, 1, 1, 1, 1, 1], [0] * 8, [1] * 8])
    lengths, offsets = cudnn.sequences(segments, 4)
    assert lengths.tolist() == [[2, 3, 1, -1], [6, -1, -1, -1], [-1] * 4, [8, -1, -1, -1]]
    assert offsets.tolist() == [
        *([0, 2, 6, -1, -1], [2, -1, -1, -1, -1]),
        *([-1] * 5, [0, -1, -1, -1, -1]),
    ]
    assert lengths.dtype == offsets.dtype == jnp.int32


def test_what_jax_makes_of_them():
    """Sequences of all rows one after another, offsets in elements from the first row on."""
    from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

    segments = jnp.array([[1, 1, 2, 0], [0, 1, 1, 1]])
    lengths, offsets = cudnn.sequences(segments, 2)
    keys = jnp.zeros((2, 4, 2 if cudnn.GROUPED else 6, 8))
    fixed = jax_cudnn._fix_seqlen_offsets(
        lengths, lengths, offsets, offsets, jnp.zeros((2, 4, 6, 8)), keys
    )
    assert fixed[0].reshape(-1).tolist() == fixed[1].reshape(-1).tolist() == [2, 1, 3, 0]
    of_queries, of_keys = (np.asarray(x).reshape(-1)[:4] for x in fixed[2:])
    assert (of_queries // (6 * 8)).tolist() == [0, 2, 5, 8]
    assert (of_keys // (keys.shape[2] * 8)).tolist() == [0, 2, 5, 8]


@pytest.mark.parametrize("causal", [True, False])
def test_packed_rows_are_those_of_dense(monkeypatch, causal):
    """Outputs and gradients, grouped queries; nothing reaches padding or comes back from it."""
    cudnn_contract.install(monkeypatch)
    attend = functools.partial(cudnn.attend, most=3)
    against_dense(attend, arrays(3, 40, 4, 2, 8), jnp.asarray(SEGMENTS), causal)


def test_one_example_in_a_row_behind_padding(monkeypatch):
    """Of one sequence JAX would ignore the offset."""
    cudnn_contract.install(monkeypatch)
    attend = functools.partial(cudnn.attend, most=1)
    against_dense(attend, arrays(1, 40, 2, 2, 8), jnp.asarray(SEGMENTS[2:]), True)


def test_more_segments_than_the_limit_are_not_a_number(monkeypatch):
    """Packing never makes such a row; if one came, the loss would not be finite."""
    cudnn_contract.install(monkeypatch)
    q, k, v, _ = arrays(3, 40, 4, 2, 8)
    selection = Selection("cudnn", H100, 2)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    out = select.run(selection, q, k, v, jnp.asarray(SEGMENTS), causal=True)
    out = np.asarray(out, np.float32)
    assert np.isnan(out[1, 20:]).all()
    assert np.isfinite(out[[0, 2]]).all() and np.isfinite(out[1, :20]).all()


@pytest.mark.parametrize("packed", [True, False])
def test_an_odd_number_of_positions(monkeypatch, packed):
    """As CLIP's 577: JAX has no gradient of such rows, so they are one longer."""
    cudnn_contract.install(monkeypatch)
    attend = functools.partial(cudnn.attend, most=3)
    segments = jnp.asarray(SEGMENTS[1:2, :39]) if packed else None
    against_dense(attend, arrays(1, 39, 2, 2, 8), segments, packed)


@pytest.mark.slow
def test_eight_devices_are_one(monkeypatch, make_mesh):
    cudnn_contract.install(monkeypatch)
    monkeypatch.setattr(cudnn, "DTYPES", ("float32",))
    segments = jnp.asarray(np.concatenate([SEGMENTS, SEGMENTS[:1]]))
    inputs = arrays(4, 40, 4, 2, 8)
    eight_devices_are_one(Selection("cudnn", H100, 3), inputs, segments, make_mesh)


# ---------------------------------------------------------------------------------------- programs


def lowered(causal: bool, packed: bool, remat: str = "full", T: int = 640) -> str:
    """The StableHLO of loss and gradients for a GPU, which needs neither GPU nor its compiler."""
    B, N, K, H = 2, 4, 2, 64
    run = functools.partial(select.run, Selection("cudnn", H100, 16), causal=causal)

    def loss(q, k, v, segments):
        kept = jax.checkpoint(run, policy=layers.REMAT[remat])
        return jnp.sum(kept(q, k, v, segments if packed else None).astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct((B, T, heads, H), jnp.bfloat16) for heads in (N, K, K)]
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
    with gpu_target.as_if_here(CHIPS["h100"]):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*shapes, ids)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_packed_program_calls_the_kernel_and_has_no_scores():
    text = lowered(causal=True, packed=True)
    assert text.count("@__cudnn$fmhaSoftmax(") == 2  # full remat computes it again
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert text.count(r"\22mask_type\22: \22PADDING_CAUSAL\22") == 3
    assert text.count(r"\22max_seg_per_batch\22: 16") == 3
    assert "640x640" not in text


def test_whole_images_are_not_masked():
    text = lowered(causal=False, packed=False)
    assert text.count(r"\22mask_type\22: \22NO_MASK\22") == 3
    assert "640x640" not in text
    odd = lowered(causal=False, packed=False, T=577)
    assert odd.count(r"\22mask_type\22: \22PADDING\22") == 3 and "577x577" not in odd


def test_attention_is_kept_where_the_policy_says_so():
    """Its results have no names for `jax.checkpoint`: they are told by their primitive."""
    text = lowered(causal=True, packed=True, remat="attention")
    assert text.count("@__cudnn$fmhaSoftmax(") == 1


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, H100, None),
        ({}, Device("gpu", (10, 0)), None),
        ({}, Device("cpu"), "needs a GPU, not a cpu"),
        ({"dtype": "float32"}, H100, "computes bfloat16 and float16, not float32"),
        ({}, Device("gpu", (8, 0)), "packed rows need compute capability 9.0 or newer"),
        ({}, Device("gpu"), "this GPU's is unknown"),
        ({"packed": False}, Device("gpu", (8, 0)), None),
        ({"head_dim": 256}, H100, "multiples of 8 up to 128, not 256"),
        ({"segments": None}, H100, r"limit of examples in a row \(data.row_examples\)"),
        ({"rows": 256}, H100, "not 256 rows"),
    ],
)
def test_what_it_refuses(changes, device, reason):
    call = CALL._replace(**changes)
    selection = Selection("cudnn", device, call.segments)
    if reason is None:
        assert selection.backend(call) == "cudnn"
        return
    with pytest.raises(ConfigError, match=f"compute.attention=cudnn: .*{reason}.*; choose "):
        selection.backend(call)


def test_bytes_that_preflight_counts():
    sums = 4 * 2 * 2048 * 32
    assert cudnn.score_bytes(CALL._replace(packed=False)) == sums
    repeated = 0 if cudnn.GROUPED else 8 * 2 * 2048 * 32 * 128
    assert cudnn.score_bytes(CALL) == 16 * sums + repeated


# ---------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cudnn", "tokamax", "triton", "blocks"])
@pytest.mark.parametrize("packed", [True, False])
def test_on_gpus(name, packed):
    """The kernels themselves in bfloat16, against dense attention in float32."""
    selection = Selection(name, select.device_of(jax.devices()[0]), 3)
    inputs = [x.astype(jnp.bfloat16) for x in arrays(3, 577, 4, 2, 64)]
    segments = np.zeros((3, 577), np.int32)
    segments[0, :200], segments[0, 200:431], segments[1, :9], segments[1, 12:577] = 1, 2, 1, 2
    segments[2, 100:] = 1
    ids = jnp.asarray(segments) if packed else None
    run = functools.partial(select.run, selection)
    call = lambda q, k, v, segments, causal: run(q, k, v, segments, causal=causal)  # noqa: E731
    exact = [x.astype(jnp.float32) for x in inputs]
    with jax.default_matmul_precision("highest"):
        expected = outputs(dense.attend, exact, ids, packed)
    for ours, reference in zip(outputs(call, inputs, ids, packed), expected, strict=True):
        ours = np.asarray(ours, np.float32)
        assert np.isfinite(ours).all()
        error = np.sqrt(np.mean((ours - reference) ** 2)) / np.sqrt(np.mean(reference**2))
        assert error < 1e-2
