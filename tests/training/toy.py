"""A model that fits on a hand: embedding, one product, head. What the training tests train."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllm_jax.batch import Batch
from mllm_jax.config.stage import ComputeConfig, OptimizerConfig, PartConfig
from mllm_jax.training import optimizer, state

V, D, F = 32, 8, 16
AXES = {
    "language/embedding": ("vocab", "embed"),
    "language/head/kernel": ("vocab", "embed"),
    "language/mlp/up/kernel": ("embed", "mlp"),
    "language/mlp/down/kernel": ("mlp", "embed"),
    "connector/linear_1/kernel": ("none", "embed"),
    "connector/linear_1/bias": ("embed",),
}
SHAPES = {
    "language/embedding": (V, D),
    "language/head/kernel": (V, D),
    "language/mlp/up/kernel": (D, F),
    "language/mlp/down/kernel": (F, D),
    "connector/linear_1/kernel": (D, D),
    "connector/linear_1/bias": (D,),
}
ALL = {"all": PartConfig(".*")}
ALIGN = {
    "connector": PartConfig("connector/.*", learning_rate=1e-2),
    "rest": PartConfig("language/.*", train=False),
}
FLOAT32 = ComputeConfig(compute="float32")


def abstract_params():
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}


def init_params(abstract):
    """Parameters in the dtypes of `abstract`, the same numbers every time."""
    rng = np.random.default_rng(0)
    random = {path: 0.3 * rng.normal(size=abstract[path].shape) for path in sorted(abstract)}
    return {path: random[path].astype(x.dtype) for path, x in abstract.items()}


def apply(params, batch, number=None):
    """(params, batch) -> (hidden [B, T, D], head [V, D]).

    The lookup is a product: of a gather from a table that is divided, inside of a sum over `data`
    alone, XLA's partitioner dies (its device groups are those of all axes). The model has its own.
    """
    words = jax.nn.one_hot(batch.tokens, V)
    x = jnp.einsum("btv,vd->btd", words, params["language/embedding"])
    x = x + jnp.einsum("btd,de->bte", x, params["connector/linear_1/kernel"])
    x = x + params["connector/linear_1/bias"][None, None]
    up = jax.nn.gelu(jnp.einsum("btd,df->btf", x, params["language/mlp/up/kernel"]))
    hidden = x + jnp.einsum("btf,fd->btd", up, params["language/mlp/down/kernel"])
    return hidden, params["language/head/kernel"]


def batch(rows=16, length=12, seed=0):
    """Rows with very unequal numbers of trained tokens, two streams, three languages, no images."""
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    trained = np.arange(length)[None] < rng.integers(0, length, (rows, 1)) ** 2 // length
    return Batch(
        tokens=rng.integers(0, V, shape, dtype=np.int32),
        targets=rng.integers(0, V, shape, dtype=np.int32),
        weights=trained.astype(np.float32),
        segments=np.ones(shape, np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        image_index=np.full(shape, -1, np.int32),
        streams=np.tile(rng.integers(0, 2, (rows, 1), dtype=np.int32), (1, length)),
        languages=rng.integers(0, 3, shape, dtype=np.int32),
        pixels=np.zeros((rows, 0, 2, 2, 3), np.uint8),
    )


def make_setup(parts=ALL, compute=FLOAT32, steps=10, **settings):
    """(optimizer, abstract state) for the toy model."""
    config = OptimizerConfig(parts, **{"learning_rate": 1e-2, "warmup_ratio": 0.0, **settings})
    abstract = abstract_params()
    trainable, _ = optimizer.split(state.param_dtypes(abstract, parts, compute), parts)
    made = optimizer.make_optimizer(config, steps, trainable)
    return made, state.abstract_state(abstract, parts, compute, made)


def text(compiled: Any) -> str:
    """The compiled program."""
    return compiled.as_text()


def memory(compiled: Any) -> Any:
    """Its memory: output_size_in_bytes, temp_size_in_bytes."""
    return compiled.memory_analysis()


def flops(compiled: Any) -> float:
    """The compiler's count, right where there is no loop."""
    return compiled.cost_analysis()["flops"]


def create_state(made, abstract, mesh):
    """(state, shardings) from parameters in their places."""
    places = state.state_shardings(mesh, abstract, AXES)
    params = jax.device_put(init_params(abstract.params), places.params)
    return state.create_state(params, made, abstract, places), places
