"""A base in int8: the numbers of the dense matrices that it is turned back into, and no others."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common import int8
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.model import LanguageConfig, ModelConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models import axes, lora, mllm
from mllm_jax.training import int8_base
from tests.models.test_mllm import conversation, inputs_of, row

LANGUAGE = LanguageConfig(128, width=64, mlp=48, layers=2, heads=4, kv_heads=2, head_dim=8)
MODEL = ModelConfig(language=LANGUAGE)
LORA = AdapterConfig("language/layers/.*/kernel", rank=3, alpha=6.0, base="int8")
DORA = dataclasses.replace(LORA, dora=True)
CHATS = [conversation(1, 0, 5), conversation(2, 0, 9), conversation(3, 0, 7)]


@functools.cache
def drawn(adapter: AdapterConfig, compute: Any = "float32") -> tuple[dict, dict]:
    """(parameters with the base in int8, the same with what it is turned back into)."""
    model = mllm.build(MODEL, ComputeConfig(compute=compute), adapter=adapter)
    params = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    held = int8_base.held(params, adapter, axes.logical_axes(params))
    held = int8_base.with_int8(params, held)
    random = np.random.default_rng(0)
    b = {
        p: jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32)) for p, x in params.items()
    }
    held |= lora.magnitudes(held, compute)
    held |= {path: x for path, x in b.items() if path.endswith("lora_b")}
    dense = {path: x for path, x in held.items() if not path.endswith("kernel_scale")}
    for path in adapter.int8_kernels(params):
        matrix = int8.Int8Matrix(held[path], held[path.removesuffix("kernel") + "kernel_scale"])
        dense[path] = int8.dense(matrix, compute)
    return held, dense


def pulled(params: Any, adapter: AdapterConfig, compute: ComputeConfig) -> Any:
    """Sum of random weights x hidden states, and its gradient by adapters and embeddings."""
    model = mllm.build(MODEL, compute, adapter=adapter)
    chosen = lambda path: "/lora_" in path or path == "language/embedding"  # noqa: E731
    inputs = inputs_of(row(CHATS, 24, 0))

    def total(moving, rest):
        x = mllm.hidden(model, {**rest, **moving}, inputs).astype(jnp.float32)
        weights = jax.random.normal(jax.random.key(7), x.shape)
        return jnp.sum(x * weights * (inputs.segments > 0)[..., None])

    moving = {path: x for path, x in params.items() if chosen(path)}
    rest = {path: x for path, x in params.items() if not chosen(path)}
    return jax.jit(jax.value_and_grad(total))(moving, rest)


@pytest.mark.parametrize(
    ("adapter", "compute", "remat"),
    [
        (LORA, "float32", "none"),
        pytest.param(DORA, "float32", "full", marks=pytest.mark.slow),
        pytest.param(DORA, "bfloat16", "full", marks=pytest.mark.slow),
    ],
    ids=["lora", "dora", "bfloat16"],
)
def test_loss_and_gradients_are_those_of_the_dense_matrices(adapter, compute, remat):
    held, dense = drawn(adapter, compute)
    assert sum(x.dtype == jnp.int8 for x in held.values()) == 7
    formats = ComputeConfig(compute=compute, remat=remat, attention="dense")
    found, gradients = pulled(held, adapter, formats)
    expected, of_dense = pulled(dense, dataclasses.replace(adapter, base="compute"), formats)
    tolerance = 1e-5 if compute == "float32" else 2e-2  # bfloat16: products summed in another order
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    for path, x in gradients.items():
        scale = np.abs(of_dense[path]).max()
        assert np.abs(x - of_dense[path]).max() <= tolerance * scale, path


def test_it_is_near_the_base_as_it_came():
    """Hidden states of random weights, quantised, after two layers: off by under 3 %."""
    model = mllm.build(MODEL, ComputeConfig(compute="float32", attention="dense"), adapter=LORA)
    held, _ = drawn(LORA)
    params = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    params |= {path: x for path, x in held.items() if path.endswith("lora_b")}
    inputs = inputs_of(row(CHATS, 24, 0))
    run = jax.jit(functools.partial(mllm.hidden, model))
    found, expected = (np.asarray(run(p, inputs)) for p in (held, params))
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 1e-3 < error < 3e-2, error


def test_packed_equals_unpacked():
    """Dropout and all."""
    held, _ = drawn(LORA)
    adapter = dataclasses.replace(LORA, dropout=0.3)
    model = mllm.build(MODEL, ComputeConfig(compute="float32", attention="dense"), adapter=adapter)
    run = jax.jit(functools.partial(mllm.hidden, model))
    packed = np.asarray(run(held, inputs_of(row(CHATS, 24, 0)), jax.random.key(3)))[0]
    at = 0
    for chat in CHATS:
        count = len(chat[0])
        alone = np.asarray(run(held, inputs_of(row([chat], 24, 0)), jax.random.key(3)))[0]
        error = np.abs(alone[:count] - packed[at : at + count]).max()
        assert error <= 1e-5 * np.abs(packed).max()
        at += count


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_dense_matrix_is_kept_for_the_backward_pass(remat):
    """What is kept of the base is what is held: int8 numbers and their scales."""
    held, _ = drawn(LORA)
    model = mllm.build(MODEL, ComputeConfig(compute="float32", remat=remat), adapter=LORA)
    moving = {path: x for path, x in held.items() if "/lora_" in path}
    rest = {path: x for path, x in held.items() if path not in moving}
    inputs = inputs_of(row(CHATS, 24, 0))

    def pull(moving, rest):
        return jax.vjp(lambda moving: mllm.hidden(model, {**rest, **moving}, inputs), moving)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull, moving, rest))
    kernels = {held[path].shape for path in LORA.int8_kernels(held)}
    assert not [x for x in kept if x.shape in kernels and x.dtype != jnp.int8]
