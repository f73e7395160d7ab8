"""Chooses the attention backend for a platform and a shape, and runs it."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.common.errors import ConfigError
from mllm_jax.models.kernels import blocks, cudnn, dense, loop, splash, tokamax, triton
from mllm_jax.models.kernels.protocol import CPU, Backend, Call, Device, Queries

# name in `compute.attention` -> backend
BACKENDS: dict[str, Backend] = {
    "dense": dense.BACKEND,
    "blocks": blocks.BACKEND,
    "loop": loop.BACKEND,
    "splash": splash.BACKEND,
    "cudnn": cudnn.BACKEND,
    "tokamax": tokamax.BACKEND,
    "triton": triton.BACKEND,
}
AUTO = "auto"
# platform -> what `auto` tries, in this order; the last one refuses nothing
PREFERRED = {
    "cpu": ("loop",),
    "gpu": ("cudnn", "tokamax", "triton", "blocks"),
    "tpu": ("splash", "blocks"),
}
# on CPUs `blocks` is the quicker one up to here, `loop` above: docs/attention.md
SHORT = 640


class Selection(NamedTuple):
    """The backend as the config names it, and the chip that it is for."""

    name: str = AUTO  # `auto` or a key of BACKENDS
    device: Device = CPU
    segments: int | None = None  # the most that a packed row holds; None: as many as fit

    def backend(self, call: Call) -> str:
        """The key of BACKENDS that computes a call.

        Raises:
            ConfigError: the backend that the config names cannot.
        """
        if self.name != AUTO:
            reason = self._refuses(self.name, call)
            if reason is None:
                return self.name
            raise ConfigError(
                f"compute.attention={self.name}: {reason}; choose {self._alternative(call)}"
            )
        return self._alternative(call)

    def _alternative(self, call: Call) -> str:
        platform = self.device.platform
        if platform == "cpu" and (call.length <= SHORT or call.parts > 1):
            return "blocks"
        able = (name for name in PREFERRED[platform] if self._refuses(name, call) is None)
        return next(able)

    def _refuses(self, name: str, call: Call) -> str | None:
        if call.parts > 1 and BACKENDS[name].run_part is None:
            return "does not divide a row over mesh.context"
        return BACKENDS[name].refuses(call, self.device)


def device_of(device: Any) -> Device:
    """What a choice depends on of one of JAX's devices."""
    capability = getattr(device, "compute_capability", None)  # "9.0"; GPUs alone have it
    major, _, minor = str(capability).partition(".")
    cuda = (int(major), int(minor)) if minor else None
    return Device("gpu" if device.platform in ("gpu", "cuda") else device.platform, cuda)


def run(
    selection: Selection,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None = None,
    *,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """Attention over whole rows, on one device; zeros for padding.

    Args:
        selection: the backend.
        q, k, v: N is a multiple of K.
        segments: 0 for padding; None where each row is one whole segment.
        causal: whether later keys are hidden.

    Raises:
        ConfigError: the backend that the config names cannot compute this.
    """
    B, T, N, H = q.shape
    packed, most = segments is not None, selection.segments
    call = Call(B, T, N, k.shape[2], H, str(q.dtype), causal, packed, most)
    backend = BACKENDS[selection.backend(call)]
    compute: Any = functools.partial(backend.run, **{"most": most} if backend.bounded else {})
    out = compute(q, k, v, segments, causal=causal)
    return out if segments is None else _without_padding(out, segments)


def run_part(
    selection: Selection,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    queries: Queries,
    segments: Int[Array, "B S"],
) -> Float[Array, "B T N H"]:
    """Causal attention of a part of the queries of rows, on one device; zeros for padding.

    Args:
        selection: the backend.
        q: of the part; N is a multiple of K.
        k, v: of whole rows; S is a multiple of T.
        queries: where they are.
        segments: of the keys; 0 for padding.

    Raises:
        ConfigError: the backend that the config names cannot compute this.
    """
    B, T, N, H = q.shape
    parts, most = k.shape[1] // T, selection.segments
    call = Call(B, T, N, k.shape[2], H, str(q.dtype), True, True, most, parts)
    of_part = BACKENDS[selection.backend(call)].run_part
    assert of_part is not None, "refused where the backend is chosen"
    return _without_padding(of_part(q, k, v, queries, segments), queries.segments)


def _without_padding(
    out: Float[Array, "B T N H"], segments: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    return jnp.where(segments[:, :, None, None] > 0, out, jnp.zeros((), out.dtype))
