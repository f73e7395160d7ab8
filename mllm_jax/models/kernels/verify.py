"""Compares a kernel with dense attention, on the device that will run it and before anything does.

Kernels for accelerators are code of other packages, which drivers, libraries and chips decide
about; a wrong one trains without an error (cuDNN's offsets before JAX 0.11.1: jax-ml/jax#39521).
So the kernels that a run is about to use attend to a few random rows, packed if its rows are, with
its heads, number formats and limits; outputs and gradients are compared with float32.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.distributed import context
from mllm_jax.models.kernels import select
from mllm_jax.models.kernels.protocol import Backend, Call, Queries
from mllm_jax.models.kernels.select import BACKENDS, Selection

# root mean square of the difference over that of the reference. bfloat16 alone makes 0.0017 to
# 0.004 (interpreted kernels); a kernel that loses a segment or a head is off by 0.1 and more
LIMIT = 0.02
LONGEST = 1024  # positions of a row that is tried, 512 of one that devices share
ENDS = (0.29, 0.55, 0.91)  # of the segments in a row that is tried, as parts of it; then padding
# JAX's errors while compiling and running are RuntimeErrors; what kernels raise of what they cannot
# do, or of a JAX that they do not know
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, ImportError)
NAMES = ("output", "gradient of queries", "gradient of keys", "gradient of values")


class Rows(NamedTuple):
    """What is tried: random, in the number format of the call."""

    q: jax.Array  # [B, T, N, H]
    k: jax.Array  # [B, S, K, H]
    v: jax.Array
    g: jax.Array  # [B, T, N, H]: what comes back to the output
    segments: jax.Array | None  # [B, S]
    queries: Queries | None  # where devices share a row


def verify(selection: Selection, call: Call) -> float | None:
    """Tries the backend of a call on this process's first device.

    Args:
        selection: the backend.
        call: the attention that a program is about to be compiled for.

    Returns:
        The largest relative error of output and gradients; None for a backend that is no kernel.

    Raises:
        ConfigError: the kernel fails, or its error is above LIMIT.
    """
    name = selection.backend(call)
    if not BACKENDS[name].kernel:
        return None
    shared = call.parts > 1
    longest = LONGEST // 2 if shared else LONGEST
    few = call._replace(rows=1 if shared else 2, length=min(call.length, longest))
    return _tried(name, BACKENDS[name], selection, few)


@functools.cache  # a sweep asks for the same again
def _tried(name: str, backend: Backend, selection: Selection, call: Call) -> float:
    """The error of a backend, `name`, for a few rows. Raises ConfigError, as `verify`."""
    del backend  # part of the key alone
    rows = _rows(call)
    try:
        # the backend that was chosen for all rows, whatever would be for these
        ours = _outputs(selection._replace(name=name), call.causal, rows)
    except FAILURES as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{_option(selection, name)} fails on this {_kind()}: {type(error).__name__}: "
            f"{reason}; choose blocks"
        ) from error
    q, k, v, g = (x.astype(jnp.float32) for x in (rows.q, rows.k, rows.v, rows.g))
    exact = rows._replace(q=q, k=k, v=v, g=g)
    reference = _outputs(Selection("dense"), call.causal, exact)
    errors = [_error(a, b) for a, b in zip(ours, reference, strict=True)]
    for what, error in zip(NAMES, errors, strict=True):
        require(
            error <= LIMIT,
            f"{_option(selection, name)}: on this {_kind()} the {what} is off dense attention by "
            f"{error:.2g} (at most {LIMIT:g}): the kernel is wrong here; choose blocks",
        )
    return max(errors)


def _option(selection: Selection, name: str) -> str:
    chosen = f" ({name})" if name != selection.name else ""
    return f"compute.attention={selection.name}{chosen}"


def _kind() -> str:
    return jax.local_devices()[0].device_kind


def _rows(call: Call) -> Rows:
    B, T, S = call.rows, call.length, call.keys
    drawn = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, T, call.heads), (B, S, call.kv_heads), (B, S, call.kv_heads), (B, T, call.heads)]
    q, k, v, g = (
        jax.random.normal(key, (*shape, call.head_dim)).astype(call.dtype)
        for key, shape in zip(drawn, shapes, strict=True)
    )
    segments = _segments(B, S, call.segments) if call.packed else None
    queries = None
    if call.parts > 1:
        assert segments is not None, "whole images are not divided by length"
        positions = context.positions(0, call.parts, T)  # of the first device
        queries = Queries(positions, segments[:, positions])
    return Rows(q, k, v, g, segments, queries)


def _segments(rows: int, length: int, most: int | None) -> jax.Array:
    """The first row holds several segments and padding, a second one a single segment."""
    numbers = np.zeros((rows, length), np.int32)
    numbers[1:] = 1
    start = 0
    for number, part in enumerate(ENDS[:most], 1):
        end = round(part * length)
        numbers[0, start:end] = number
        start = end
    return jnp.asarray(numbers)


def _outputs(selection: Selection, causal: bool, rows: Rows) -> list[np.ndarray]:
    """Output, and gradients of queries, keys and values, on the host."""

    def loss(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        q, k, v, g, segments, queries = arrays
        if queries is not None:
            out = select.run_part(selection, q, k, v, queries, segments)
        else:
            out = select.run(selection, q, k, v, segments, causal=causal)
        return jnp.sum((out * g).astype(jnp.float32)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*rows)
    return [np.asarray(x, np.float32) for x in jax.device_get((out, *grads))]


def _error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Relative; infinite where something is not a number."""
    error = math.sqrt(np.mean((ours - reference) ** 2) / np.mean(reference**2))
    return error if math.isfinite(error) else math.inf
