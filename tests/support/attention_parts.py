"""Attention of a row that devices share: each part beside dense attention over the whole row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.distributed import context
from mllm_jax.models.kernels import dense
from mllm_jax.models.kernels.protocol import Queries

B, N, K = 2, 4, 2


def case(length, head_dim=8):
    """Queries, keys, values, what weighs the output, and segments with padding at the end."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (N, K, K, N)
    arrays = [
        jax.random.normal(key, (B, length, n, head_dim)) for key, n in zip(keys, heads, strict=True)
    ]
    segments = np.zeros((B, length), np.int32)
    ends = [int(share * length) for share in (0.2, 0.55, 0.9)]
    segments[0, : ends[0]], segments[0, ends[0] : ends[1]], segments[0, ends[1] : ends[2]] = 1, 2, 3
    segments[1] = 1
    return arrays, jnp.asarray(segments)


def run(attend, arrays, segments):
    """Output and gradients; nothing comes back to padding, as `select` sees to."""
    q, k, v, g = arrays
    is_text = (segments > 0)[:, :, None, None]

    def loss(q, k, v):
        out = jnp.where(is_text, attend(q, k, v, segments), 0.0)
        return jnp.sum(out * g), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def part_by_part(of_part, parts, q, k, v, segments):
    """What `parts` devices compute, put together."""
    length = q.shape[1] // parts
    of_devices, their_segments = context.in_parts(q, parts), context.in_parts(segments, parts)
    out = []
    for i in range(parts):
        own = slice(i * length, (i + 1) * length)
        queries = Queries(context.positions(i, parts, length), their_segments[:, own])
        out.append(of_part(of_devices[:, own], k, v, queries, segments))
    return context.in_a_row(jnp.concatenate(out, axis=1), parts)


def compare(of_part, parts, arrays, segments, atol):
    causal = functools.partial(dense.attend, causal=True)
    expected = run(causal, arrays, segments)
    found = run(functools.partial(part_by_part, of_part, parts), arrays, segments)
    for ours, reference in zip(found, expected, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_allclose(ours, reference, atol=atol)
