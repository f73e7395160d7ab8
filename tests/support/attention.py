"""Outputs and gradients of an attention backend, beside those of dense attention in float32."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.models import attention
from mllm_jax.models.kernels import dense
from mllm_jax.models.kernels.select import Selection

SEGMENTS = np.zeros((3, 40), np.int32)  # padding behind, between and before segments
SEGMENTS[0, :12], SEGMENTS[0, 12:31] = 1, 2
SEGMENTS[1, :9], SEGMENTS[1, 12:20], SEGMENTS[1, 20:] = 1, 2, 3
SEGMENTS[2, 7:] = 1


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


def eight_devices_are_one(
    selection: Selection, inputs: Sequence[Any], segments: Any, make_mesh: Callable[..., Any]
) -> None:
    """Rows and heads divided over a mesh, causal."""
    attend = functools.partial(attention.attend, backend=selection)
    expected = outputs(attend, inputs, segments, True)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        divided = outputs(attend, inputs, segments, True)
    for ours, reference in zip(divided, expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-6)
