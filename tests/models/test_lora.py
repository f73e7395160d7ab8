"""LoRA: equal to a dense reference, forward and backward; dropout that follows the record alone."""

import dataclasses
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
from mllm_jax.models.layers import linear
from tests.models.test_mllm import (
    ANYRES,
    COMPUTE,
    CONFIG,
    P,
    conversation,
    inputs_of,
    row,
    tiled,
)
from tests.support.packed import SIGLIP

EVERYWHERE = r"(vision|language)/layers/.*/kernel|connector/.*/kernel"
ADAPTER = AdapterConfig(EVERYWHERE, rank=3, alpha=6.0)
DORA = dataclasses.replace(ADAPTER, dora=True)


@functools.cache
def drawn(adapter: AdapterConfig = ADAPTER) -> dict[str, jax.Array]:
    """Random parameters, the adapters' B among them, so that every adapter has an effect."""
    model = mllm.build(CONFIG, COMPUTE, adapter=adapter)
    params = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    params |= lora.magnitudes(params)
    random = np.random.default_rng(0)

    def effect(path: str, x: jax.Array) -> jax.Array:
        change = jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32))
        return x * (1 + change) if path.endswith("lora_magnitude") else change

    moved = ("lora_b", "lora_magnitude")
    return {path: effect(path, x) if path.endswith(moved) else x for path, x in params.items()}


def dense(params, adapter: AdapterConfig = ADAPTER) -> dict[str, np.ndarray]:
    """The same model without adapters, as a reader of the run sees it."""
    leaves = {path: Leaf(x.shape, x.dtype, lambda x=x: np.asarray(x)) for path, x in params.items()}
    return {path: leaf.read() for path, leaf in merged(leaves, adapter).items()}


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


@pytest.mark.parametrize(
    "adapter",
    [ADAPTER, pytest.param(DORA, marks=pytest.mark.slow)],
    ids=["lora", "dora"],
)
def test_output_and_gradients_are_those_of_a_dense_reference(adapter):
    """W + s A B in one matrix: the same output; dA = s dW B', dB = s A' dW by the chain rule.

    DoRA: dW is multiplied by m / |V|, a constant, and dm = sum of dW V / |V| over the inputs.
    """
    params = drawn(adapter)
    inputs = inputs_of(row([conversation(1, 2, 5), conversation(2, 0, 9)], 64, 2))
    adapted, merged_params = mllm.build(CONFIG, COMPUTE, adapter=adapter), dense(params, adapter)
    moving = [path for path in params if path not in merged_params]
    found, gradients = pulled(adapted, params, inputs, moving)
    kernels = sorted({kernel_of(path) for path in moving})
    assert len(kernels) == 7 + 6 + 2
    expected, of_kernels = pulled(mllm.build(CONFIG, COMPUTE), merged_params, inputs, kernels)
    close(found, expected)
    for kernel in kernels:
        beside, layers = kernel.removesuffix("kernel"), int("/layers/" in kernel)
        inputs_count = 2 if "attention/out" in kernel else 1
        a, b = params[beside + "lora_a"], params[beside + "lora_b"]
        d_w = flat(of_kernels[kernel], inputs_count, layers)
        wide_a, wide_b = flat(a, inputs_count, layers), flat(b, 1, layers)
        if adapter.dora:
            changed = flat(params[kernel], inputs_count, layers) + adapter.scale * wide_a @ wide_b
            direction = changed / np.linalg.norm(changed, axis=-2, keepdims=True)
            m = params[beside + "lora_magnitude"]
            d_m = np.sum(d_w * direction, axis=-2).reshape(m.shape)
            close(gradients[beside + "lora_magnitude"], d_m, kernel)
            length = np.linalg.norm(changed, axis=-2, keepdims=True)
            d_w = d_w * np.reshape(m, length.shape) / length
        d_a = adapter.scale * np.einsum("...io,...ro->...ir", d_w, wide_b)
        d_b = adapter.scale * np.einsum("...ir,...io->...ro", wide_a, d_w)
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


def test_dora_begins_with_the_frozen_model():
    """The first magnitudes are the lengths of the frozen weights, so every factor is 1."""
    kernel = "language/layers/attention/out/kernel"
    config = AdapterConfig(kernel, rank=3, dora=True)
    params = {kernel: jax.random.normal(jax.random.key(0), (2, 4, 8, 24))}
    params |= lora.init(config, params, jax.random.key(1))
    params |= lora.magnitudes(params)
    x = jax.random.normal(jax.random.key(2), (1, 5, 4, 8))
    for layer in range(2):
        of_layer = {path.rpartition("/")[2]: one[layer] for path, one in params.items()}
        frozen = of_layer.pop("kernel")
        found = lora.adapted("BTNH,NHD->BTD", x, frozen, of_layer, linear, "out")
        close(found, linear("BTNH,NHD->BTD", x, frozen))


def products(moving: str, dora: bool) -> set[str]:
    """Shapes of all products in the compiled gradient by the parameters that `moving` matches."""
    language = ModelConfig(language=CONFIG.language)
    adapter = AdapterConfig("language/layers/.*/kernel", 3, dora=dora)
    model = mllm.build(language, COMPUTE, adapter=adapter)
    params = mllm.abstract_params(model)
    chosen = {path: x for path, x in params.items() if re.fullmatch(moving, path)}
    rest = {path: x for path, x in params.items() if path not in chosen}
    inputs = inputs_of(row([conversation(2, 0, 30)], 40, 0))

    def total(chosen, rest, inputs):
        return jnp.sum(mllm.hidden(model, {**rest, **chosen}, inputs) ** 2)

    text: Any = jax.jit(jax.grad(total)).lower(chosen, rest, inputs).compile().as_text()
    return set(re.findall(r"= \w+\[([\d,]*)\]\S* dot\(", text))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_no_gradient_of_a_frozen_matrix_and_no_merged_copy_is_computed(dora):
    """No product has the shape of the matrices; had they been trained, some would."""
    shapes = {"32,48", "48,32"}  # up, down
    assert products(".*/mlp/.*", dora) >= shapes
    adapters = products(".*/lora_.*", dora)
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


@pytest.mark.slow
def test_packed_equals_unpacked_with_tiles_and_siglip():
    """Loss and gradients of adapters with dropout: a row of tiles, a plain image and text."""
    vision = dataclasses.replace(SIGLIP, image_size=28, patch_size=7, layers=3)
    adapter = dataclasses.replace(DROPPED, match="(vision|language)/layers/.*/kernel")
    model = mllm.build(dataclasses.replace(ANYRES, vision=vision), COMPUTE, adapter=adapter)
    params = dict(jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0)))
    random, moving = np.random.default_rng(0), {}
    for path, x in params.items():
        if path.endswith("lora_b"):
            params[path] = jnp.asarray(0.1 * random.standard_normal(x.shape, np.float32))
        if "/lora_" in path:
            moving[path] = params[path]

    def total(moving, packed):
        x = mllm.hidden(model, {**params, **moving}, inputs_of(packed), jax.random.key(3))
        logits = mllm.logits(x, mllm.head(params))
        chosen = jnp.take_along_axis(logits, packed["targets"][..., None], axis=-1)[..., 0]
        return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - chosen) * packed["weights"])

    run = jax.jit(jax.value_and_grad(total))
    chats = [tiled(1, 6), conversation(2, 0, 20), conversation(3, 1, 9)]
    loss, gradients = run(moving, row(chats, 110, 5))
    alone = [run(moving, row([chat], 110, 5)) for chat in chats]
    np.testing.assert_allclose(loss, sum(one for one, _ in alone), rtol=1e-6)
    for path, x in gradients.items():
        expected = sum(np.asarray(of[path]) for _, of in alone)
        assert np.any(expected), path
        close(x, expected, path)


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


# --------------------------------------------------------------------------------------------- DoRA


@pytest.mark.parametrize("drops", [False, True])
def test_dropout_is_of_what_the_factor_changes(drops):
    """As PEFT's: x W + (m / |V| - 1) x' W + m / |V| scale (x' A) B, x' being what is left of x."""
    random = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))  # noqa: E731
    x, kernel, m = draw(2, 3, 4, 5), draw(4, 5, 6), jnp.abs(draw(6))
    adapter: dict[str, Any] = {"lora_a": draw(4, 5, 2), "lora_b": draw(2, 6), "lora_magnitude": m}
    left = x
    if drops:
        keys = jnp.arange(6, dtype=jnp.uint32).reshape(2, 3)
        adapter |= {lora.KEYS: keys, lora.KEEP: jnp.float32(0.6)}
        left = lora._dropped(x, keys, jnp.float32(0.6), "out")
    found = lora.adapted("BTNH,NHD->BTD", x, kernel, adapter, linear, "out")
    wide, update = flat(kernel, 2, 0), flat(adapter["lora_a"], 2, 0) @ np.asarray(adapter["lora_b"])
    factor = np.asarray(m) / np.linalg.norm(wide + update, axis=0)
    x, left = (np.asarray(one).reshape(6, 20) for one in (x, left))
    expected = x @ wide + (factor - 1) * (left @ wide) + factor * (left @ update)
    close(found, expected.reshape(2, 3, 6))


def test_an_output_without_weights_stays_so():
    """It has no direction: its factor is 0, not 0 / 0, and all gradients are numbers."""
    kernel = jnp.ones((3, 2)).at[:, 1].set(0)

    def total(adapter):
        return jnp.sum(
            lora.adapted("BTI,IO->BTO", jnp.ones((1, 1, 3)), kernel, adapter, linear, "")
        )

    adapter = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
    adapter["lora_magnitude"] = jnp.array([np.sqrt(3), 0], jnp.float32)
    value, gradients = jax.value_and_grad(total)(adapter)
    np.testing.assert_allclose(value, 3, rtol=1e-6)
    assert all(np.isfinite(x).all() for x in gradients.values())
    leaves = {f"connector/linear_1/{name}": x for name, x in adapter.items()}
    leaves["connector/linear_1/kernel"] = kernel
    config = AdapterConfig("connector/linear_1/kernel", rank=1, alpha=1.0, dora=True)
    found = dense(leaves, config)["connector/linear_1/kernel"]
    np.testing.assert_allclose(found, kernel, rtol=1e-6)
