"""What cuDNN's attention promises of packed rows, computed with plain operations.

A stand-in for JAX's function, which runs on GPUs only: it reads lengths and offsets as the real one
does, computes each sequence by itself, and leaves NaN wherever cuDNN writes nothing, forward and
backward.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.models.kernels import cudnn, dense


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in into JAX's place."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", attention)


def attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
    """As `jax._src.cudnn.fused_attention_stablehlo.dot_product_attention`."""
    mask, scale = options["mask_type"].name, options["scale"]
    np.testing.assert_allclose(scale, q.shape[3] ** -0.5)
    assert q.shape[1] % 2 == 0, "JAX refuses gradients of an odd number of positions"
    lengths, offsets = options.get("q_seqlen"), options.get("q_offsets")
    assert options.get("kv_seqlen") is lengths and options.get("kv_offsets") is offsets
    if lengths is None:
        assert mask in ("NO_MASK", "CAUSAL")
        return dense.attend(q, k, v, None, causal=mask == "CAUSAL")
    assert mask in ("PADDING", "PADDING_CAUSAL")
    if offsets is None:
        offsets = jnp.zeros_like(lengths)
        return _packed(mask == "PADDING_CAUSAL", q, k, v, lengths[:, None], offsets[:, None])
    assert lengths.dtype == offsets.dtype == jnp.int32
    rows, most = lengths.shape
    assert offsets.shape == (rows, most + 1) and most > 1, "one sequence: offsets are not read"
    assert cudnn.GROUPED or k.shape == q.shape, "before JAX 0.11.1 keys have to be repeated"
    return _packed(mask == "PADDING_CAUSAL", q, k, v, lengths, offsets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _packed(causal: bool, q: Any, k: Any, v: Any, lengths: Any, offsets: Any) -> Any:
    return _forward(causal, q, k, v, lengths, offsets)[0]


def _forward(causal: bool, q: Any, k: Any, v: Any, lengths: Any, offsets: Any) -> Any:
    numbers = jnp.zeros(q.shape[:2], jnp.int32)
    positions = jnp.arange(q.shape[1])[None]
    for m in range(lengths.shape[1]):
        first, length = offsets[:, m, None], lengths[:, m, None]
        inside = (first >= 0) & (positions >= first) & (positions < first + length)
        numbers = jnp.where(inside, m + 1, numbers)
    run = functools.partial(dense.attend, segments=numbers, causal=causal)
    out, pull = jax.vjp(run, q, k, v)
    return _or_nan(out, numbers), (pull, numbers)


def _backward(causal: bool, residuals: Any, d_out: Any) -> Any:
    pull, numbers = residuals
    covered = (numbers > 0)[:, :, None, None]
    gradients = pull(jnp.where(covered, d_out, jnp.zeros((), d_out.dtype)))
    return *(_or_nan(gradient, numbers) for gradient in gradients), None, None


def _or_nan(x: Any, numbers: Any) -> Any:
    return jnp.where((numbers > 0)[:, :, None, None], x, jnp.asarray(jnp.nan, x.dtype))


_packed.defvjp(_forward, _backward)
