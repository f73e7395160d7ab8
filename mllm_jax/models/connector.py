"""The bridge: patch features -> vectors the language model reads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mllm_jax.model_config import ConnectorConfig
from mllm_jax.models.layers import Einsum


class Connector(nn.Module):
    """`linear`: one map, as in the Basque model. `mlp`: linear, gelu, linear, as in LLaVA-1.5."""

    config: ConnectorConfig
    features: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B P D"]:
        bias = (self.width,) if self.config.bias else None
        x = Einsum("BPC,CD->BPD", (self.features, self.width), bias, self.dtype, name="linear_1")(x)
        if self.config.kind == "mlp":
            x = jax.nn.gelu(x, approximate=False)
            shape = (self.width, self.width)
            x = Einsum("BPE,ED->BPD", shape, bias, self.dtype, name="linear_2")(x)
        return x
