"""Outputs and gradients of an attention backend, beside those of dense attention in float32."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.models.kernels import dense


def arrays(B: int, T: int, N: int, K: int, H: int) -> list[Any]:
    """Random queries, keys, values, and what comes back to the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def outputs(attend: Callable[..., Any], inputs: Sequence[Any], segments: Any, causal: bool) -> Any:
    """Output and gradients; padding's output is zero, and nothing comes back to it."""
    q, k, v, g = inputs
    shown = None if segments is None else (segments > 0)[:, :, None, None]

    def loss(q: Any, k: Any, v: Any) -> Any:
        out = attend(q, k, v, segments, causal=causal)
        out = out if shown is None else jnp.where(shown, out, jnp.zeros((), out.dtype))
        return jnp.sum((out * g).astype(jnp.float32)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def against_dense(
    attend: Callable[..., Any], inputs: Sequence[Any], segments: Any, causal: bool
) -> None:
    """Compares in float32."""
    expected = outputs(dense.attend, inputs, segments, causal)
    for ours, reference in zip(outputs(attend, inputs, segments, causal), expected, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, reference, atol=2e-5)
