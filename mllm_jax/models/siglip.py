"""SigLIP's image tower: CLIP's blocks on patches alone, without class token and first norm.

SigLIP and SigLIP 2 of fixed resolution (transformers: SiglipVisionModel).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mllm_jax.common.arithmetic import add_shared
from mllm_jax.config.model import VisionConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models.clip import MLP, Block, patches
from mllm_jax.models.kernels.select import Selection
from mllm_jax.models.layers import Einsum, LayerNorm, stack


class SigLIP(nn.Module):
    """Pixels -> features of the chosen hidden layer, every patch's.

    Hidden states come before the post-norm, the last one too: so LLaVA in transformers reads them.
    The layers after the chosen one, the post-norm and the pooling head are parameters like the
    others, so that what was imported can be exported whole; they are not computed.
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
        x = Einsum("BhpwqC,pqCD->BhwD", (p, p, 3, D), (D,), *formats, name="patch_embedding")(x)
        # as loud as the patches, as in `CLIP`
        loud, shape = nn.initializers.normal(1.0), (c.patches, D)
        positions = self.param("position_embedding", loud, shape, jnp.float32)
        x = add_shared(x.reshape(B, c.patches, D), positions)
        block = Block(c, self.backend, *formats, parent=None)
        remat, used = self.compute.vision_remat, c.used_layers
        x, _ = stack(self, block, c.layers, remat, x, used=used, unroll=self.unroll)
        if self.is_initializing():
            LayerNorm(c.norm_eps, dtype, name="post_norm")(x)
            if c.pooling_head:
                PoolingHead(c, *formats, name="head")(x)
        return x


class PoolingHead(nn.Module):
    """The parameters of SigLIP's attention pooling, which its image-text loss alone reads."""

    config: VisionConfig
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> None:
        c, formats = self.config, (self.dtype, self.reduce)
        self.param("probe", nn.initializers.normal(1.0), (1, 1, c.width), jnp.float32)
        Projections(c.heads, c.width, *formats, name="attention")(x)
        LayerNorm(c.norm_eps, self.dtype, name="norm")(x)
        MLP(c.width, c.mlp, c.activation, *formats, name="mlp")(x)


class Projections(nn.Module):
    """The parameters of torch's MultiheadAttention: queries, keys and values in one matrix."""

    heads: int
    width: int
    dtype: jnp.dtype
    reduce: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> None:
        D, N, H = self.width, self.heads, self.width // self.heads
        formats = self.dtype, self.reduce
        Einsum("BPD,DE->BPE", (D, 3 * D), (3 * D,), *formats, name="in")(x)
        heads = jnp.zeros((*x.shape[:2], N, H), self.dtype)
        Einsum("BPNH,NHD->BPD", (N, H, D), (D,), *formats, name="out")(heads)
