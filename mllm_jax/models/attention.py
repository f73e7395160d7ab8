"""Self-attention over rows and over a cache, and rotary positions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mllm_jax.common.arithmetic import einsum
from mllm_jax.config.model import RopeConfig
from mllm_jax.distributed import context
from mllm_jax.distributed.collectives import part, per_device
from mllm_jax.distributed.sharding import parts_of
from mllm_jax.models.kernels import select as kernels
from mllm_jax.models.kernels.masks import MASKED
from mllm_jax.models.kernels.protocol import Queries
from mllm_jax.models.kernels.select import Selection

FLOAT32 = jnp.dtype("float32")


def rotary_frequencies(config: RopeConfig, head_dim: int) -> Float[np.ndarray, "half"]:
    """Inverse frequencies of the rotary positions, float32.

    `llama3` keeps high frequencies, divides low ones by `factor` and blends between, by wavelength
    against the length the model was first trained on. Source: transformers,
    modeling_rope_utils._compute_llama3_parameters.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # powers rounded once from float64, as torch's are: numpy's float32 powers are off by a unit in
    # the last place here and there, which is 5e-3 of a turn's cosine at position 131,071
    powers = (np.float64(config.theta) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    if config.kind == "default":
        return frequencies
    one = np.float32(1)  # torch takes a / b as 1 / b x a
    wavelengths = one / frequencies * np.float32(2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    blend = np.clip((one / wavelengths * config.original_length - low) / (high - low), 0, 1)
    return ((1 - blend) * frequencies / config.factor + blend * frequencies).astype(np.float32)


def rotary_tables(
    config: RopeConfig,
    head_dim: int,
    positions: Int[Array, "B T"],
    length: int | None = None,
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosines and sines of every position, float32, ready to meet [B, T, heads, H/2].

    Args:
        config: of the model.
        head_dim: H.
        positions: of the tokens.
        length: computes those of 0 to length - 1, which all positions must be among (others get
            NaN), and looks them up. XLA fuses cosines into every rotation of layers that are
            compiled one by one, and computes them again for each head; not what was looked up.
    """
    frequencies = jnp.asarray(rotary_frequencies(config, head_dim))
    if length is not None:
        angles = jnp.arange(length).astype(jnp.float32)[:, None] * frequencies[None, :]
        rows = (jnp.take(table, positions, axis=0) for table in (jnp.cos(angles), jnp.sin(angles)))
        cos, sin = (row[:, :, None] for row in rows)
        return cos, sin
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"],
    tables: tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]],
) -> Float[Array, "B T N H"]:
    """Turns pairs (x[i], x[i + H/2]) by the position's angle.

    That is Hugging Face's order of the halves, not Meta's.
    """
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend_cached(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    visible: Bool[Array, "B S"],
) -> Float[Array, "B 1 N H"]:
    """One query a row over a key/value cache.

    The cache is laid out as these two products read it: with any other order of the dimensions
    both copy it, for every token (measured on CPUs, 8 rows of 704 slots: 10 times the time).

    Args:
        q: the queries of the newest tokens.
        keys, values: of S slots.
        visible: the slots that a row's query sees, its own included.
    """
    B, _, N, H = q.shape
    K = keys.shape[1]
    q = q.reshape(B, K, N // K, H)
    scores = einsum("BKGH,BKHS->BKGS", q, keys, out=jnp.float32) / math.sqrt(H)
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return einsum("BKGS,BKSH->BKGH", weights, values).reshape(B, 1, N, H)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
    backend: Selection,
    reduce: jnp.dtype = FLOAT32,
) -> Float[Array, "B T N H"]:
    """Self-attention over a row, each device on its own rows and heads; zeros for padding.

    With a context axis each device has a part of a row's queries, in the order of `context`, and
    gathers keys and values of the whole row.

    Args:
        q, k, v: queries and keys after rotary positions, values; N is a multiple of K.
        segments: 0 for padding; None where each row is one whole segment: of images.
        causal: whether later keys are hidden; always with a context axis.
        backend: as the config names it, on the platform it is for.
        reduce: dtype in which gradients of keys and values are summed over the context axis.
    """
    run = functools.partial(kernels.run, backend, causal=causal)
    if segments is None:
        heads, kv_heads = (("images", "none", name, "head_dim") for name in ("heads", "kv_heads"))
        return per_device(run, (heads, kv_heads, kv_heads), heads)(q, k, v)
    if parts_of("length") > 1:
        run = functools.partial(_attend_part, backend, reduce)
    heads, kv_heads = (("batch", "length", name, "head_dim") for name in ("heads", "kv_heads"))
    return per_device(run, (heads, kv_heads, kv_heads, ("batch", "length")), heads)(
        q, k, v, segments
    )


def _attend_part(
    backend: Selection,
    reduce: jnp.dtype,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """One device's part of the rows: its queries, all keys."""
    queries = Queries(context.positions(part("length"), parts_of("length"), q.shape[1]), segments)
    keys, values = (context.whole_rows(x, reduce) for x in (k, v))
    return kernels.run_part(backend, q, keys, values, queries, context.whole_rows(segments))
