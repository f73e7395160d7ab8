"""The bridge: patch features -> vectors the language model reads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mllm_jax.config.model import ConnectorConfig
from mllm_jax.models.layers import Einsum


class Connector(nn.Module):
    """`linear`: one map, as in the Basque model. `mlp`: linear, gelu, linear, as in LLaVA-1.5."""

    config: ConnectorConfig
    features: int
    width: int
    dtype: jnp.dtype
    reduce: jnp.dtype = jnp.dtype("float32")  # of gradients that cross devices
    newline: bool = False  # whether it has the vector that ends a line of patches; see `mllm.embed`

    @nn.compact
    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B P D"]:
        bias = (self.width,) if self.config.bias else None
        formats = self.dtype, self.reduce
        shape = (self.features, self.width)
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
