"""Llama 3 / 3.1 / 3.2: embeddings -> hidden states.

Packed rows in training, a key/value cache in generation.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mllm_jax.config.model import LanguageConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.distributed.collectives import lookup
from mllm_jax.distributed.sharding import constrain
from mllm_jax.models.attention import attend, dense, rotary_tables, rotate
from mllm_jax.models.layers import Einsum, RMSNorm, stack


class Cache(NamedTuple):
    """Keys and values of all that was read so far, in S slots.

    Slots not yet written have segment 0.
    """

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    segments: Int[Array, "B S"]
    used: Int[Array, ""]


def empty_cache(config: LanguageConfig, rows: int, slots: int, dtype: jnp.dtype) -> Cache:
    """A cache for `rows` rows of at most `slots` tokens, prompt and answer together."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((rows, slots), jnp.int32),
        jnp.int32(0),
    )


class Seen(NamedTuple):
    """What a cached block needs to know beside its own keys and values."""

    segments: Int[Array, "B S"]
    used: Int[Array, ""]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions.

    Over the row itself, or over a cache that it extends.
    """

    config: LanguageConfig
    backend: str
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: tuple | None,
        tables: tuple,
        segments: Array,
        seen: Seen | None,
    ):
        c = self.config
        D, N, K, H = c.width, c.heads, c.kv_heads, c.head_dim
        formats = self.dtype, self.reduce
        q = rotate(Einsum("BTD,DNH->BTNH", (D, N, H), None, *formats, name="q")(x), tables)
        k = rotate(Einsum("BTD,DKH->BTKH", (D, K, H), None, *formats, name="k")(x), tables)
        v = Einsum("BTD,DKH->BTKH", (D, K, H), None, *formats, name="v")(x)
        if cache is None or seen is None:
            x = attend(q, k, v, segments, causal=True, backend=self.backend)
        else:
            at = (0, seen.used, 0, 0)
            k = jax.lax.dynamic_update_slice(cache[0], k, at)
            v = jax.lax.dynamic_update_slice(cache[1], v, at)
            x = dense(q, k, v, segments, seen.segments, seen.used, causal=True)
            cache = (k, v)
        return Einsum("BTNH,NHD->BTD", (N, H, D), None, *formats, name="out")(x), cache


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    width: int
    hidden: int
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        D, F = self.width, self.hidden
        formats = self.dtype, self.reduce
        gate = Einsum("BTD,DF->BTF", (D, F), None, *formats, name="gate")(x)
        up = Einsum("BTD,DF->BTF", (D, F), None, *formats, name="up")(x)
        return Einsum("BTF,FD->BTD", (F, D), None, *formats, name="down")(jax.nn.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm transformer block."""

    config: LanguageConfig
    backend: str
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: tuple | None,
        tables: tuple,
        segments: Array,
        seen: Seen | None,
    ):
        c = self.config
        formats = self.dtype, self.reduce
        normed = RMSNorm(c.norm_eps, self.dtype, name="attention_norm")(x)
        mixed, cache = Attention(c, self.backend, *formats, name="attention")(
            normed, cache, tables, segments, seen
        )
        x = x + mixed
        normed = RMSNorm(c.norm_eps, self.dtype, name="mlp_norm")(x)
        x = x + SwiGLU(c.width, c.mlp, *formats, name="mlp")(normed)
        return constrain(x, "batch", "length", "none"), cache


class Llama(nn.Module):
    """Token table, decoder stack, final norm, and the output table.

    The output table (absent when tied) has the same [V, D] layout as the token table.
    """

    config: LanguageConfig
    compute: ComputeConfig
    backend: str

    def setup(self):
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab, c.width), jnp.float32)
        if not c.tied:
            self.head = Head(c.vocab, c.width)
        self.norm = RMSNorm(c.norm_eps, jnp.dtype(self.compute.compute))

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Rows of the token table, taken first and cast after: the table is never copied whole."""
        compute = self.compute
        return lookup(self.embedding, tokens, jnp.dtype(compute.compute), jnp.dtype(compute.reduce))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        segments: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Embeddings -> final hidden states; with a cache, also the cache with these T tokens."""
        c = self.config
        x = constrain(x, "batch", "length", "none")
        tables = rotary_tables(c.rope, c.head_dim, positions)
        formats = jnp.dtype(self.compute.compute), jnp.dtype(self.compute.reduce)
        block = Block(c, self.backend, *formats, parent=None)
        seen = state = None
        if cache is not None:
            seen = Seen(
                jax.lax.dynamic_update_slice(cache.segments, segments, (0, cache.used)), cache.used
            )
            state = (cache.keys, cache.values)
        x, state = stack(
            self, block, c.layers, self.compute.remat, x, tables, segments, seen, state=state
        )
        if self.is_initializing() and not c.tied:
            self.head()
        if seen is not None:
            keys, values = state
            cache = Cache(keys, values, seen.segments, seen.used + x.shape[1])
        return self.norm(x), cache


class Head(nn.Module):
    """The output table, one row per token."""

    vocab: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "V D"]:
        return self.param(
            "kernel",
            nn.initializers.normal(self.width**-0.5),
            (self.vocab, self.width),
            jnp.float32,
        )
