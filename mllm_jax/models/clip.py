"""CLIP's image tower: pixels -> patch features, one vector per patch, of a chosen hidden layer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mllm_jax.common.arithmetic import add_shared
from mllm_jax.config.model import VisionConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.distributed.sharding import constrain
from mllm_jax.models.attention import attend
from mllm_jax.models.kernels.select import Selection
from mllm_jax.models.layers import Einsum, LayerNorm, stack

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def normalise(
    config: VisionConfig,
    pixels: UInt8[Array, "B height width C"] | Float[Array, "B height width C"],
) -> Float[Array, "B height width C"]:
    """RGB bytes -> what the tower was trained on: scaled to 0..1, minus mean, over std.

    Floats count as normalised already.
    """
    if jnp.issubdtype(pixels.dtype, jnp.floating):
        return pixels
    shape = (1, 1, 1, 3)
    mean = jnp.asarray(config.image_mean, jnp.float32).reshape(shape)
    std = jnp.asarray(config.image_std, jnp.float32).reshape(shape)
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std


def patches(
    config: VisionConfig,
    pixels: UInt8[Array, "B height width 3"] | Float[Array, "B height width 3"],
    dtype: jnp.dtype,
) -> Float[Array, "B h p w q C"]:
    """Normalised pixels by patches; those beyond the last whole patch are left out.

    So does a convolution without padding, whose stride is the patch.
    """
    B, p, side = pixels.shape[0], config.patch_size, config.image_size // config.patch_size
    whole = pixels[:, : side * p, : side * p]
    return normalise(config, whole).astype(dtype).reshape(B, side, p, side, p, 3)


class Block(nn.Module):
    """Pre-norm transformer block with full attention."""

    config: VisionConfig
    backend: Selection
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], state: None) -> tuple[Float[Array, "B T D"], None]:
        c = self.config
        N, H, D, F = c.heads, c.width // c.heads, c.width, c.mlp
        formats = self.dtype, self.reduce
        attention = Attention(N, H, D, self.backend, *formats, name="attention")
        x = x + attention(self._norm("norm1")(x))
        x = x + MLP(D, F, c.activation, *formats, name="mlp")(self._norm("norm2")(x))
        return constrain(x, "images", "none", "none"), state

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.config.norm_eps, self.dtype, name=name)


class Attention(nn.Module):
    """Every patch sees every patch of its image."""

    heads: int
    head_dim: int
    width: int
    backend: Selection
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        D, N, H = self.width, self.heads, self.head_dim
        formats = self.dtype, self.reduce
        q, k, v = (
            Einsum("BTD,DNH->BTNH", (D, N, H), (N, H), *formats, name=name)(x) for name in "qkv"
        )
        x = attend(q, k, v, None, causal=False, backend=self.backend)
        return Einsum("BTNH,NHD->BTD", (N, H, D), (D,), *formats, name="out")(x)


class MLP(nn.Module):
    """Two linear maps with the tower's activation between."""

    width: int
    hidden: int
    activation: str
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        D, F = self.width, self.hidden
        formats = self.dtype, self.reduce
        x = Einsum("BTD,DF->BTF", (D, F), (F,), *formats, name="in")(x)
        x = ACTIVATIONS[self.activation](x)
        return Einsum("BTF,FD->BTD", (F, D), (D,), *formats, name="out")(x)


class CLIP(nn.Module):
    """Pixels -> features of the chosen hidden layer, class token left out.

    The layers after the chosen one and the post-norm are parameters like the others, so that what
    was imported can be exported whole; they are not computed.
    """

    config: VisionConfig
    compute: ComputeConfig
    backend: Selection
    unroll: bool = False  # see `stack`

    @nn.compact
    def __call__(
        self, pixels: UInt8[Array, "B height width 3"] | Float[Array, "B height width 3"]
    ) -> Float[Array, "B P D"]:
        c, dtype = self.config, jnp.dtype(self.compute.compute)
        formats = dtype, jnp.dtype(self.compute.reduce)
        B, p, D = pixels.shape[0], c.patch_size, c.width
        x = patches(c, pixels, dtype)
        x = Einsum("BhpwqC,pqCD->BhwD", (p, p, 3, D), None, *formats, name="patch_embedding")(x)
        init = nn.initializers.normal(D**-0.5)
        class_embedding = self.param("class_embedding", init, (D,), jnp.float32)
        # as loud as the patches, so that a tower trained from nothing soon tells left from right
        loud, shape = nn.initializers.normal(1.0), (c.patches + 1, D)
        positions = self.param("position_embedding", loud, shape, jnp.float32)
        first = add_shared(jnp.zeros((B, 1, D), dtype), class_embedding)
        x = add_shared(jnp.concatenate([first, x.reshape(B, c.patches, D)], axis=1), positions)
        x = LayerNorm(c.norm_eps, dtype, name="pre_norm")(x)
        block = Block(c, self.backend, *formats, parent=None)
        remat, used = self.compute.vision_remat, c.used_layers
        x, _ = stack(self, block, c.layers, remat, x, used=used, unroll=self.unroll)
        if self.is_initializing():
            LayerNorm(c.norm_eps, dtype, name="post_norm")(x)
        return x[:, 1:]
