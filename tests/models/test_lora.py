"""LoRA: equal to a dense reference, forward and backward; dropout that follows the record alone."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.batch import ModelInputs
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.merge import merged
from mllm_jax.config.adapter import AdapterConfig, kernel_of
from mllm_jax.config.model import ModelConfig
from mllm_jax.models import lora, mllm
from tests.models.test_mllm import COMPUTE, CONFIG, P, conversation, inputs_of, row

EVERYWHERE = r"(vision|language)/layers/.*/kernel|connector/.*/kernel"
ADAPTER = AdapterConfig(EVERYWHERE, rank=3, alpha=6.0)


@functools.cache
def drawn() -> dict[str, jax.Array]:
    """Random parameters, the adapters' B among them, so that every adapter has an effect."""
    model = mllm.build(CONFIG, COMPUTE, adapter=ADAPTER)
    params = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    random = np.random.default_rng(0)
    return {
        path: jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32))
        if path.endswith("lora_b")
        else x
        for path, x in params.items()
    }


def dense(params) -> dict[str, np.ndarray]:
    """The same model without adapters, as a reader of the run sees it."""
    leaves = {path: Leaf(x.shape, x.dtype, lambda x=x: np.asarray(x)) for path, x in params.items()}
    return {path: leaf.read() for path, leaf in merged(leaves, ADAPTER).items()}


def pulled(model: mllm.MLLM, params: Any, inputs: ModelInputs, moving: Any) -> Any:
    """(sum of random weights x hidden states, its gradient by the parameters in `moving`)."""

    @jax.jit
    def run(moving, rest, inputs):
        def total(moving):
            x = mllm.hidden(model, {**rest, **moving}, inputs)
            weights = jax.random.normal(jax.random.key(7), x.shape)
            return jnp.sum(x * weights * (inputs.segments > 0)[..., None])

        return jax.value_and_grad(total)(moving)

    chosen = {path: jnp.asarray(params[path]) for path in moving}
    rest = {path: x for path, x in params.items() if path not in chosen}
    return run(chosen, rest, inputs)


def close(found, expected, name=""):
    error = np.abs(np.asarray(found) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max() + 1e-6, (name, error)


def flat(x, inputs: int, layers: int = 1):
    """[L, inputs..., outputs...] -> [L, I, O]."""
    return np.asarray(x).reshape(
        *x.shape[:layers], int(np.prod(x.shape[layers : layers + inputs])), -1
    )


def test_output_and_gradients_are_those_of_a_dense_reference():
    """W + s A B in one matrix: the same output; dA = s dW B', dB = s A' dW by the chain rule."""
    params = drawn()
    inputs = inputs_of(row([conversation(1, 2, 5), conversation(2, 0, 9)], 64, 2))
    adapted = mllm.build(CONFIG, COMPUTE, adapter=ADAPTER)
    moving = [path for path in params if path not in dense(params)]
    found, gradients = pulled(adapted, params, inputs, moving)
    kernels = sorted({kernel_of(path) for path in moving})
    assert len(kernels) == 7 + 6 + 2
    expected, of_kernels = pulled(mllm.build(CONFIG, COMPUTE), dense(params), inputs, kernels)
    close(found, expected)
    for kernel in kernels:
        beside, layers = kernel.removesuffix("kernel"), int("/layers/" in kernel)
        inputs_count = 2 if "attention/out" in kernel else 1
        a, b = params[beside + "lora_a"], params[beside + "lora_b"]
        d_w = flat(of_kernels[kernel], inputs_count, layers)
        wide_a, wide_b = flat(a, inputs_count, layers), flat(b, 1, layers)
        d_a = ADAPTER.scale * np.einsum("...io,...ro->...ir", d_w, wide_b)
        d_b = ADAPTER.scale * np.einsum("...ir,...io->...ro", wide_a, d_w)
        close(gradients[beside + "lora_a"], d_a.reshape(a.shape), kernel)
        close(gradients[beside + "lora_b"], d_b.reshape(b.shape), kernel)


def test_training_begins_with_the_frozen_model():
    """B is zero; A lies within 1 / sqrt(inputs), or has the deviation 1 / rank."""
    deviations: dict[Any, float] = {"uniform": 1 / np.sqrt(3 * 4096), "normal": 1 / 16}
    for init, deviation in deviations.items():
        config = AdapterConfig("language/layers/mlp/up/kernel", rank=16, init=init)
        kernels = {"language/layers/mlp/up/kernel": np.zeros((2, 4096, 64))}
        params = lora.init(config, kernels, jax.random.key(1))
        a, b = params.values()
        assert a.shape == (2, 4096, 16) and b.shape == (2, 16, 64)
        assert not b.any()
        np.testing.assert_allclose(a.std(), deviation, rtol=0.02)
        assert np.abs(a[0] - a[1]).max() > 0
        if init == "uniform":
            assert np.abs(a).max() <= 1 / 64


def products(moving: str) -> set[str]:
    """Shapes of all products in the compiled gradient by the parameters that `moving` matches."""
    language = ModelConfig(language=CONFIG.language)
    model = mllm.build(language, COMPUTE, adapter=AdapterConfig("language/layers/.*/kernel", 3))
    params = mllm.abstract_params(model)
    chosen = {path: x for path, x in params.items() if re.fullmatch(moving, path)}
    rest = {path: x for path, x in params.items() if path not in chosen}
    inputs = inputs_of(row([conversation(2, 0, 30)], 40, 0))

    def total(chosen, rest, inputs):
        return jnp.sum(mllm.hidden(model, {**rest, **chosen}, inputs) ** 2)

    text: Any = jax.jit(jax.grad(total)).lower(chosen, rest, inputs).compile().as_text()
    return set(re.findall(r"= \w+\[([\d,]*)\]\S* dot\(", text))


def test_no_gradient_of_a_frozen_matrix_and_no_merged_copy_is_computed():
    """No product has the shape of the matrices; had they been trained, some would."""
    shapes = {"32,48", "48,32"}  # up, down
    assert products(".*/mlp/.*") >= shapes
    adapters = products(".*/lora_[ab]")
    assert adapters >= {"32,3", "3,48"}
    assert not adapters & shapes


# ------------------------------------------------------------------------------------------ dropout

DROPPED = AdapterConfig(EVERYWHERE, rank=3, alpha=6.0, dropout=0.4)


def trained_hidden(chats, length, slots, step=0):
    model = mllm.build(CONFIG, COMPUTE, adapter=DROPPED)
    key = jax.random.fold_in(jax.random.key(3), step)
    inputs = inputs_of(row(chats, length, slots))
    return np.asarray(jax.jit(functools.partial(mllm.hidden, model))(drawn(), inputs, key))[0]


def test_dropout_follows_the_record_not_its_place():
    """Packed with others, in another slot and at another place of the row: the same numbers."""
    chats = [conversation(1, 2, 5), conversation(2, 0, 9), conversation(3, 1, 9)]
    packed = trained_hidden(chats, 110, 4)
    at = 0
    for chat in chats:
        count = len(chat[0])
        alone = trained_hidden([chat], 60, 2)
        close(alone[:count], packed[at : at + count])
        at += count
    other = trained_hidden(chats, 110, 4, step=1)
    assert np.abs(other[:at] - packed[:at]).max() > 1e-3


def test_a_share_of_the_inputs_is_dropped_and_the_rest_is_raised():
    keys = lora.text_identities(jnp.arange(600)[None], jnp.arange(600)[None])
    x = jnp.ones((1, 600, 4, 8))
    found = [np.asarray(lora._dropped(x, keys, jnp.float32(0.7), name)) for name in ("q", "k")]
    for dropped in found:
        assert set(np.unique(dropped)) == {0, np.float32(1) / np.float32(0.7)}
        assert abs(np.mean(dropped == 0) - 0.3) < 0.01
        along = [np.mean(dropped == 0, axis=(0, 2, 3)), np.mean(dropped == 0, axis=(0, 1))]
        assert max(np.abs(share - 0.3).max() for share in along) < 0.35
    both = np.mean((found[0] == 0) & (found[1] == 0))
    assert abs(both - 0.09) < 0.01  # modules drop independently


@pytest.mark.parametrize("change", ["token", "pixel"])
def test_what_comes_before_a_position_decides_what_it_drops(change):
    tokens = np.arange(8)[None]
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 3]])
    if change == "token":
        before = lora.text_identities(jnp.asarray(tokens), jnp.asarray(positions))
        other = np.where(tokens == 5, 77, tokens)
        after = lora.text_identities(jnp.asarray(other), jnp.asarray(positions))
        np.testing.assert_array_equal(before[0] == after[0], [1, 1, 1, 1, 1, 0, 0, 0])
        assert len(set(np.asarray(before[0]).tolist())) == 8
        return
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1, 2, 2, 1] = 1
    found = np.asarray(lora.image_identities(jnp.asarray(pixels), P))
    assert len(set(found.flatten().tolist())) == 2 * P
