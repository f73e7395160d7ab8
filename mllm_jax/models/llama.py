"""Llama 3 / 3.1 / 3.2: embeddings -> hidden states.

Packed rows in training, a key/value cache in generation.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mllm_jax.config.model import LanguageConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.distributed.collectives import lookup
from mllm_jax.distributed.sharding import constrain
from mllm_jax.models.attention import attend, attend_cached, rotary_tables, rotate
from mllm_jax.models.kernels.select import Selection
from mllm_jax.models.layers import Einsum, RMSNorm, is_unstacked, layer_of, stack


class Cache(NamedTuple):
    """Keys and values of all that was read so far, in S slots.

    Every layer has arrays of its own, so that a token is written into them where they are, and in
    the order of dimensions that `attend_cached` reads.
    """

    keys: tuple[Float[Array, "B K H S"], ...]
    values: tuple[Float[Array, "B K S H"], ...]
    first: Int[Array, "B"]  # slot of each row's first token; those before it are padding
    used: Int[Array, ""]  # slots that were read or are padding


class Step(NamedTuple):
    """What every layer needs to know of the token that is read into a cache."""

    slot: Int[Array, ""]  # where it goes
    visible: Bool[Array, "B S"]  # the slots that it sees, its own included


class Attention(nn.Module):
    """Grouped-query attention with rotary positions.

    Over the row itself, or of one token over a cache that it extends.
    """

    config: LanguageConfig
    backend: Selection
    dtype: jnp.dtype
    reduce: jnp.dtype
    keep: bool = False  # whether keys and values are returned: the beginning of a cache

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: tuple | None,
        tables: tuple,
        segments: Array | None,
        step: Step | None = None,
    ):
        c = self.config
        D, N, K, H = c.width, c.heads, c.kv_heads, c.head_dim
        formats = self.dtype, self.reduce
        q = rotate(Einsum("BTD,DNH->BTNH", (D, N, H), None, *formats, name="q")(x), tables)
        k = rotate(Einsum("BTD,DKH->BTKH", (D, K, H), None, *formats, name="k")(x), tables)
        v = Einsum("BTD,DKH->BTKH", (D, K, H), None, *formats, name="v")(x)
        if step is None:
            assert segments is not None
            x = attend(q, k, v, segments, causal=True, backend=self.backend, reduce=self.reduce)
            cache = (k, v) if self.keep else None
        else:
            assert cache is not None
            write = jax.lax.dynamic_update_slice_in_dim
            keys = write(cache[0], k.transpose(0, 2, 3, 1), step.slot, 3)
            values = write(cache[1], v.transpose(0, 2, 1, 3), step.slot, 2)
            x, cache = attend_cached(q, keys, values, step.visible), (keys, values)
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
    backend: Selection
    dtype: jnp.dtype
    reduce: jnp.dtype
    keep: bool = False  # see `Attention`

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: tuple | None,
        tables: tuple,
        segments: Array | None,
        step: Step | None = None,
    ):
        c = self.config
        formats = self.dtype, self.reduce
        normed = RMSNorm(c.norm_eps, self.dtype, name="attention_norm")(x)
        mixed, cache = Attention(c, self.backend, *formats, self.keep, name="attention")(
            normed, cache, tables, segments, step
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
    backend: Selection
    unroll: bool = False  # see `stack`

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
    ) -> Float[Array, "B T D"]:
        """Embeddings -> final hidden states."""
        c = self.config
        x = constrain(x, "batch", "length", "none")
        tables = self._tables(positions)
        block, remat = self._block(False), self.compute.remat
        x, _ = stack(self, block, c.layers, remat, x, tables, segments, unroll=self.unroll)
        if self.is_initializing() and not c.tied:
            self.head()
        return self.norm(x)

    def read(
        self,
        x: Float[Array, "B T D"],
        segments: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        slots: int,
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """Reads left-padded rows into a new cache of `slots` tokens.

        Returns:
            The final hidden states of the last tokens, and the cache. Of the last layer only keys
            and values are computed for the other tokens: nothing reads what it says of them.
        """
        c, T = self.config, x.shape[1]
        x = constrain(x, "batch", "length", "none")
        tables = self._tables(positions)
        block, remat = self._block(True), self.compute.remat
        shared, used = (tables, segments), c.layers - 1
        x, kept = stack(self, block, c.layers, remat, x, *shared, used=used, unroll=self.unroll)
        params = layer_of(self.get_variable("params", "layers"), c.layers - 1)
        out: Any = block.apply({"params": params}, x, None, tables, segments)
        of_layers = [(kept[0][n], kept[1][n]) for n in range(c.layers - 1)] + [out[1]]
        keys = tuple(_with_room(k.transpose(0, 2, 3, 1), slots - T, 3) for k, _ in of_layers)
        values = tuple(_with_room(v.transpose(0, 2, 1, 3), slots - T, 2) for _, v in of_layers)
        first = T - jnp.sum(segments > 0, axis=1, dtype=jnp.int32)
        cache = Cache(keys, values, first, jnp.int32(T))
        of_last = tuple(table[:, -1:] for table in tables)
        step = Step(jnp.int32(T - 1), _visible(cache, T - 1))  # writes what is there already
        state = keys[-1], values[-1]
        out = self._block(False).apply({"params": params}, x[:, -1:], state, of_last, None, step)
        return self.norm(out[0]), cache

    def step(
        self,
        x: Float[Array, "B 1 D"],
        positions: Int[Array, "B 1"],
        layers: Any,
        cache: Cache,
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """Reads one token of every row into the cache.

        Args:
            x: their embeddings.
            positions: theirs.
            layers: the parameters of all blocks, see `layer_of`.
            cache: of what was read before.
        """
        c = self.config
        tables = rotary_tables(c.rope, c.head_dim, positions)
        step = Step(cache.used, _visible(cache, cache.used))
        keys, values, block = [], [], self._block(False)
        for n, state in enumerate(zip(cache.keys, cache.values, strict=True)):
            layer, x = _layer_behind(x, layers, n)
            out: Any = block.apply({"params": layer}, x, state, tables, None, step)
            x, (k, v) = out
            keys.append(k)
            values.append(v)
        return self.norm(x), Cache(tuple(keys), tuple(values), cache.first, cache.used + 1)

    def _tables(self, positions: Int[Array, "B T"]) -> tuple[Array, Array]:
        """Rotary tables of whole rows: their positions are below T."""
        length = positions.shape[1] if self.unroll else None
        return rotary_tables(self.config.rope, self.config.head_dim, positions, length)

    def _block(self, keep: bool) -> Block:
        formats = jnp.dtype(self.compute.compute), jnp.dtype(self.compute.reduce)
        return Block(self.config, self.backend, *formats, keep, parent=None)


def _layer_behind(x: Array, layers: Any, n: int) -> tuple[Any, Array]:
    """Block n's parameters, and x, before which they are not sliced, cast or gathered.

    Compilers would do so for all blocks at the same time, and hold the language model once more.
    """
    apart = is_unstacked(layers)
    behind, x = jax.lax.optimization_barrier((layers[str(n)] if apart else layers, x))
    return behind if apart else layer_of(behind, n), x


def _visible(cache: Cache, slot: Int[Array, ""] | int) -> Bool[Array, "B S"]:
    """The slots that the token in `slot` of each row sees: its own, and all of its row before."""
    slots = jnp.arange(cache.values[0].shape[2])[None, :]
    return (slots >= cache.first[:, None]) & (slots <= slot)


def _with_room(x: Float[Array, "B K _ _"], slots: int, axis: int) -> Float[Array, "B K _ _"]:
    """Keys or values with room for more tokens behind those that are there."""
    x = jnp.pad(x, [(0, slots if n == axis else 0) for n in range(4)])
    return constrain(x, "batch", "kv_heads", "none", "none")


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
