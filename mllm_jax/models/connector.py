"""The bridge: patch features -> vectors the language model reads."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mllm_jax.config.model import ConnectorConfig
from mllm_jax.models.layers import Einsum


def pool(config: ConnectorConfig, x: Float[Array, "B P C"]) -> Float[Array, "B vectors inputs"]:
    """Makes one vector of each square of 2 x 2 patches, as `config.pool` says.

        0 1 2    of 3 x 3 patches the last line is repeated:    mean or row of   0 1 3 4
        3 4 5                                                                    2 2 5 5
        6 7 8                                                                    6 7 6 7
                                                                                 8 8 8 8

    `shuffle` is InternVL's and Idefics 3's pixel shuffle, up to the order of the channels.
    """
    if config.pool == "none":
        return x
    B, P, C = x.shape
    side, stride = math.isqrt(P), config.stride
    lines = -(-side // stride)
    more = (0, lines * stride - side)
    x = jnp.pad(x.reshape(B, side, side, C), ((0, 0), more, more, (0, 0)), mode="edge")
    x = x.reshape(B, lines, stride, lines, stride, C).swapaxes(2, 3)
    x = x.reshape(B, lines**2, stride**2, C)
    if config.pool == "shuffle":
        return x.reshape(B, lines**2, stride**2 * C)
    return jnp.mean(x, axis=2, dtype=jnp.float32).astype(x.dtype)


class Connector(nn.Module):
    """`linear`: one map, as in the Basque model. `mlp`: linear, gelu, linear, as in LLaVA-1.5.

    Squares of 2 x 2 patches may become one vector first: see `pool`.
    """

    config: ConnectorConfig
    features: int
    width: int
    dtype: jnp.dtype
    reduce: jnp.dtype = jnp.dtype("float32")  # of gradients that cross devices
    newline: bool = False  # whether it has the vector that ends a line of patches; see `mllm.embed`

    @nn.compact
    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B vectors D"]:
        bias = (self.width,) if self.config.bias else None
        formats = self.dtype, self.reduce
        x = pool(self.config, x)
        shape = (x.shape[2], self.width)
        x = Einsum("BPC,CD->BPD", shape, bias, *formats, name="linear_1")(x)
        if self.config.kind == "mlp":
            x = jax.nn.gelu(x, approximate=False)
            shape = (self.width, self.width)
            x = Einsum("BPE,ED->BPD", shape, bias, *formats, name="linear_2")(x)
        if self.newline and self.is_initializing():
            # LLaVA-VL/LLaVA-NeXT, llava_arch.py, initialize_vision_modules: randn / sqrt(D)
            init = nn.initializers.normal(self.width**-0.5)
            self.param("newline", init, (self.width,), jnp.float32)
        return x
