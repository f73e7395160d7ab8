"""The parts of the memory formula by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.core import ShapedArray

from mllm_jax.common.hardware import Platform
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models.kernels.select import Selection
from mllm_jax.preflight import memory
from mllm_jax.preflight.memory import Memory, Share

LANGUAGE = LanguageConfig(vocab=100, width=8, mlp=16, layers=2, heads=4, kv_heads=2, head_dim=2)
SHARE = Share(rows=3, microbatches=1, length=10, images=6, tensor=1)
BFLOAT, FLOAT = ComputeConfig(), ComputeConfig(compute="float32")
DENSE, LOOP, BLOCKS = Selection("dense"), Selection("loop"), Selection("blocks")


def test_the_larger_of_loss_and_layer_counts():
    parts = Memory(1, 2, 3, 4, 5, 6, gradients=10, activations=20, logits=30, head=40, layer=50)
    assert (parts.held, parts.temporary, parts.total) == (15, 6 + 10 + 20 + 70, 121)
    assert parts._replace(layer=80).temporary == 116


@pytest.mark.parametrize(
    ("chunk", "positions"), [(10, 30), (512, 30), (5, 15), (4, 10), (7, 15), (1, 3)]
)
def test_logits_of_a_chunk(chunk: int, positions: int):
    """Chunks are equal, as in the loss: 3 x 10 positions by at most 3 x 7 are 2 x 15."""
    assert memory.logits_bytes(LANGUAGE, SHARE, chunk) == positions * 100 * 8
    half = SHARE._replace(tensor=2)
    assert memory.logits_bytes(LANGUAGE, half, chunk) == positions * 50 * 8


@pytest.mark.parametrize(
    ("compute", "trained", "divided", "each"),
    [
        (BFLOAT, False, True, 2),
        (FLOAT, False, False, 4),
        (BFLOAT, True, False, 2),
        (BFLOAT, True, True, 10),
        (FLOAT, True, True, 12),
    ],
)
def test_the_output_table(compute: ComputeConfig, trained: bool, divided: bool, each: int):
    assert memory.head_bytes(LANGUAGE, SHARE, compute, trained, divided) == 800 * each


def test_one_layer():
    model = ModelConfig(language=LANGUAGE)
    weights = 8 * (2 * 4 + 2 * 2) * 2 + 3 * 8 * 16
    per_token = 5 * 8 + 6 * 16 + 2 * (2 * 4 + 2 * 2) * 2
    scores = 2 * 4 * 3 * 4 * 10 * 10  # two, float32: rows, heads, queries, keys
    frozen = memory.layer_bytes(model, SHARE, BFLOAT, False, DENSE)
    assert frozen == weights * 2 * 2 + 30 * per_token * 2 + scores
    # gradients as they are summed over devices: in float32 unless the config says otherwise
    assert memory.layer_bytes(model, SHARE, BFLOAT, True, DENSE) == frozen + weights * 4
    half = dataclasses.replace(BFLOAT, reduce="bfloat16")
    assert memory.layer_bytes(model, SHARE, half, True, DENSE) == frozen + weights * 2
    # ten queries are one block, whose scores exist once on GPUs and twice on TPUs
    blocks = memory.layer_bytes(model, SHARE, BFLOAT, False, BLOCKS)
    assert frozen - blocks == scores // 2
    on_tpu = SHARE._replace(platform="tpu")
    assert memory.layer_bytes(model, on_tpu, BFLOAT, False, BLOCKS) == frozen
    # the output table's gradient, 800 numbers twice, may wait for its sum meanwhile (once on GPUs)
    waiting = memory.head_gradient_bytes(LANGUAGE, SHARE, True)
    assert waiting == 800 * 8
    assert memory.head_gradient_bytes(LANGUAGE, SHARE, False) == 0
    for share, more in ((SHARE, waiting // 2), (on_tpu, max(scores // 2, waiting))):
        beside = memory.layer_bytes(model, share, BFLOAT, False, BLOCKS, head_gradient=waiting)
        assert beside == blocks + more


def test_one_layer_of_a_base_in_int8_and_of_dora():
    """Int8 numbers beside dense ones; a copy of the largest matrix, and gate and up twice."""
    model, weights = ModelConfig(language=LANGUAGE), 8 * (2 * 4 + 2 * 2) * 2 + 3 * 8 * 16
    lora = AdapterConfig(".*", base="int8")
    dora = AdapterConfig(".*", dora=True)
    plain, of_int8, of_dora = (
        memory.layer_bytes(model, SHARE, BFLOAT, False, DENSE, adapter)
        for adapter in (AdapterConfig(".*"), lora, dora)
    )
    assert plain == memory.layer_bytes(model, SHARE, BFLOAT, False, DENSE)
    assert of_int8 - plain == weights * (1 + 2 / 64)
    assert of_dora - plain == 2 * 16 * (8 + 2 * 30)


def test_scores_of_a_long_row_are_those_of_all_its_blocks():
    """Eight blocks of 256 see 256, 512, ... 2,048 keys; `loop` holds 128 by 128."""
    model, share = ModelConfig(language=LANGUAGE), SHARE._replace(length=2048)
    dense, blocks, loop = (
        memory.layer_bytes(model, share, BFLOAT, False, one) for one in (DENSE, BLOCKS, LOOP)
    )
    assert dense - blocks == 4 * 3 * 4 * (2 * 2048 * 2048 - 256 * 256 * 36)
    assert dense - loop == 2 * 4 * 3 * 4 * (2048 * 2048 - 128 * 128)


@pytest.mark.parametrize(
    ("platform", "microbatches", "compute", "size"),
    [("tpu", 2, BFLOAT, 200), ("tpu", 1, BFLOAT, 0), ("gpu", 2, BFLOAT, 0), ("tpu", 2, FLOAT, 0)],
)
def test_copies_of_trained_parameters(
    platform: Platform, microbatches: int, compute: ComputeConfig, size: int
):
    share = SHARE._replace(platform=platform, microbatches=microbatches)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = {"a": jax.ShapeDtypeStruct((10, 10), jnp.float32, sharding=place)}
    assert memory.copies_bytes(placed, share, compute) == size


def test_a_large_image_tower_is_the_larger_layer():
    vision = VisionConfig(image_size=28, patch_size=14, width=64, mlp=256, layers=2, heads=4)
    model = ModelConfig(vision, ConnectorConfig(), LANGUAGE, image_token=99)
    weights, tokens = 4 * 64 * 64 + 2 * 64 * 256, 6 * 5
    found = memory.layer_bytes(model, SHARE, BFLOAT, False, BLOCKS)
    assert found == (weights + tokens * (4 * 64 + 2 * 256)) * 2


def test_what_does_not_grow_with_the_rows_falls_out():
    def backward(rows: int):
        weights = ShapedArray((1000,), jnp.dtype(jnp.float32))
        kept = ShapedArray((4, rows, 3), jnp.dtype(jnp.bfloat16))
        return [weights, kept, kept.update(shape=(rows,), memory_space=jax.memory.Space.Host)]

    assert memory.kept_per_row(backward) == memory.Kept(device=4 * 3 * 2, host=2)
