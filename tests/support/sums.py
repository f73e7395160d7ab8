"""A small whole model with many addends to every sum: images of 64 patches, words as they are used.

A newline vector follows every line of 8 patches.

The most frequent word stands a fifth of all positions; 48 images have 3,072 patches. Every value
of the parameters is a bfloat16 number, so the format in which they are held changes no product.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllm_jax.batch import Batch
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig, OptimizerConfig, PartConfig
from mllm_jax.distributed import sharding
from mllm_jax.training import setup, state, step
from mllm_jax.training.loss import weighted_loss
from tests.support.exact_sums import exact

V, P, LINE, SLOTS, TEXT = 64, 64, 8, 3, 64
IMAGES = SLOTS * (P + P // LINE)  # placeholders of a row
ROWS, LENGTH, CHUNK, BETA1 = 16, IMAGES + TEXT, 70, 0.9
# compilers may leave out roundings that the program asks for, here and there: activations would
# differ from program to program, and gradients with them, by up to 1 %
AS_WRITTEN: dict[str, str | bool] = {"xla_allow_excess_precision": False}
VISION = VisionConfig(image_size=32, patch_size=4, width=16, mlp=40, layers=3, heads=2)


def model(tied: bool = False) -> ModelConfig:
    language = LanguageConfig(
        vocab=V, width=24, mlp=56, layers=2, heads=4, kv_heads=2, head_dim=8, tied=tied
    )
    grids = GridsConfig("hw", sizes=((32, 64),))
    return ModelConfig(VISION, ConnectorConfig("mlp"), language, V - 1, grids)


def batch() -> Batch:
    """Rows of three images and a text whose words follow Zipf's law; the text is trained."""
    rng, shape = np.random.default_rng(0), (ROWS, LENGTH)
    frequency = 1 / np.arange(1, V)
    tokens = np.full(shape, V - 1, np.int32)
    tokens[:, -TEXT:] = rng.choice(V - 1, (ROWS, TEXT), p=frequency / frequency.sum())
    lines = np.arange(SLOTS * P, dtype=np.int32).reshape(-1, LINE)
    lines = np.pad(lines, ((0, 0), (0, 1)), constant_values=SLOTS * P)
    index = np.full(shape, -1, np.int32)
    index[:, :IMAGES] = lines.ravel()
    weights = np.zeros(shape, np.float32)
    weights[:, -TEXT - 1 : -1] = 1
    side = VISION.image_size
    pixels = rng.integers(0, 256, (ROWS, SLOTS, side, side, 3), dtype=np.uint8)
    zeros, ones = np.zeros(shape, np.int32), np.ones(shape, np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    targets = np.roll(tokens, -1, axis=1)
    return Batch(tokens, targets, weights, ones, positions, index, zeros, zeros, pixels)


def make_setup(mesh: Mesh, compute: ComputeConfig, tied: bool = False) -> setup.TrainSetup:
    """Everything is trained; the first update leaves (1 - BETA1) x gradient in Adam's moments."""
    config = OptimizerConfig(
        {"all": PartConfig(".*")}, 1e-3, beta1=BETA1, warmup_ratio=0.0, clip_norm=None
    )
    return setup.make_setup(model(tied), compute, config, mesh, steps=10)


def compute(**formats: Any) -> ComputeConfig:
    return ComputeConfig(
        **{"compute": "bfloat16", "remat": "none", "attention": "blocks", "loss_chunk": CHUNK}
        | formats
    )


def one_device() -> Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


@functools.cache
def params(tied: bool = False) -> Any:
    """Random bfloat16 numbers, held in float32."""
    made = make_setup(one_device(), compute(), tied)
    drawn = setup.init_params(made, made.params, seed=1)
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32)), drawn)


@functools.cache
def reference(tied: bool = False) -> Any:
    """The gradient of the mean loss, every sum exact, whole batch at once, on one device."""
    apply = setup.apply_of(make_setup(one_device(), compute(), tied).model)

    def loss(params: Any, batch: Batch) -> jax.Array:
        hidden, head = apply(params, batch, None)
        targets, weights = jnp.asarray(batch.targets), jnp.asarray(batch.weights)
        return weighted_loss(hidden, head, targets, weights, CHUNK)[0] / jnp.sum(weights)

    program = jax.jit(exact(jax.grad(loss)))
    gradient = program.lower(params(tied), batch()).compile(AS_WRITTEN)(params(tied), batch())
    return jax.tree.map(np.asarray, gradient)


def lowered(made: setup.TrainSetup, microbatches: int) -> Any:
    """The real step, not yet compiled."""
    formats = made.model.compute
    train = step.make_train_step(
        setup.apply_of(made.model),
        made.optimizer,
        microbatches,
        CHUNK,
        1,
        1,
        made.shardings,
        jnp.dtype(formats.reduce),
    )
    rows = jax.tree.map(lambda _: sharding.batch_sharding(made.mesh), batch())
    everywhere = NamedSharding(made.mesh, PartitionSpec())
    placed = jax.jit(
        train, in_shardings=(made.shardings, rows), out_shardings=(made.shardings, everywhere)
    )
    with jax.set_mesh(made.mesh):
        return placed.lower(made.abstract, batch())


def gradient(mesh: Mesh, compute: ComputeConfig, microbatches: int, tied: bool = False) -> Any:
    """The gradient that the real step hands to Adam."""
    made = make_setup(mesh, compute, tied)
    held = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), params(tied), made.params)
    placed = jax.device_put(held, made.shardings.params)
    fresh = state.create_state(placed, made.optimizer, made.abstract, made.shardings)
    after, _ = lowered(made, microbatches).compile(AS_WRITTEN)(
        fresh, setup.shard_batch(batch(), mesh)
    )
    return jax.tree.map(lambda m: np.asarray(m) / (1 - BETA1), after.opt_state.mu)
