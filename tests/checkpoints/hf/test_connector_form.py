"""A linear connector as LLaVA's two layers: to the bit and back, and what only looks like one."""

import numpy as np
import pytest

from mllm_jax.checkpoints.hf.connector_form import (
    FORMS,
    Form,
    as_two_layers,
    choose_form,
    describe,
    single_layer,
)
from mllm_jax.checkpoints.hf.names import BY_PATH, to_hf
from mllm_jax.checkpoints.hf.tensor_files import DTYPES
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

VISION = VisionConfig(image_size=28, patch_size=7, width=12, layers=2, heads=2)
FEATURES, WIDTH = 12, 32


class Stored:
    """A tensor as a folder has it, in memory."""

    format = "F32"

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.nbytes = array, array.shape, array.nbytes

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        return self.array if index is None else self.array[index]


def connector(dtype: str, bias: bool = True) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    kernel = random.standard_normal((FEATURES, WIDTH), np.float32)
    kernel[3], kernel[4, 5], kernel[4, 6] = 0, -0.0, 1e-7
    arrays = {"connector/linear_1/kernel": kernel}
    if bias:
        arrays["connector/linear_1/bias"] = random.standard_normal(WIDTH, np.float32)
    return {path: x.astype(DTYPES[dtype]) for path, x in arrays.items()}


def stored(arrays: dict[str, np.ndarray], form: Form = "gelu") -> dict[str, Stored]:
    """The tensors of an export, by the table's names."""
    leaves = {path: Leaf(x.shape, x.dtype, lambda x=x: x) for path, x in arrays.items()}
    layers = as_two_layers(leaves, WIDTH, form)
    return {BY_PATH[p].name: Stored(to_hf(p, leaf.read())) for p, leaf in layers.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip_is_bit_identical(form: Form, dtype: str, bias: bool) -> None:
    arrays = connector(dtype, bias)
    back = single_layer("here", form, stored(arrays, form))
    assert back is not None
    names = {BY_PATH[path].name: to_hf(path, x) for path, x in arrays.items()}
    assert back.keys() == names.keys()
    for name, x in names.items():
        assert back[name].read().dtype == x.dtype
        assert back[name].shape == x.shape
        assert back[name].nbytes == x.nbytes
        assert back[name].read().tobytes() == x.tobytes()
        part = tuple(slice(1, n - 1) for n in x.shape)
        assert back[name].read(part).tobytes() == x[part].tobytes()


def test_gelu_between_changes_nothing() -> None:
    """gelu(x) - gelu(-x) = x: the two layers compute what the one computes."""
    jax = pytest.importorskip("jax")
    arrays = connector("float32")
    layers = {name: x.array for name, x in stored(arrays).items()}
    x = np.random.default_rng(1).normal(0, 3, (50, FEATURES)).astype(np.float32)
    C = "multi_modal_projector."
    h = x @ layers[f"{C}linear_1.weight"].T + layers[f"{C}linear_1.bias"]
    h = np.asarray(jax.nn.gelu(h, approximate=False))
    two = h @ layers[f"{C}linear_2.weight"].T + layers[f"{C}linear_2.bias"]
    kernel, bias = arrays.values()
    np.testing.assert_allclose(two, x @ kernel + bias, atol=2e-5, rtol=0)


LOOKALIKES = {
    "a weight of linear_1": ("linear_1.weight", (2, 2)),
    "a zero of linear_1": ("linear_1.weight", (FEATURES + 1, 5)),
    "below linear_1's blocks": ("linear_1.weight", (WIDTH - 1, 0)),
    "a bias of linear_1": ("linear_1.bias", (7,)),
    "a weight of linear_2": ("linear_2.weight", (3, 1)),
    "its negative": ("linear_2.weight", (3, FEATURES + 1)),
    "beyond linear_2's blocks": ("linear_2.weight", (3, 2 * FEATURES)),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_trained_mlp_is_not_mistaken(name: str) -> None:
    """One number that is not exactly as the form says, as after one step of training."""
    tensors = stored(connector("float32"))
    tensor, index = LOOKALIKES[name]
    array = tensors[f"multi_modal_projector.{tensor}"].array
    array[index] += np.float32(1e-6) + abs(array[index]) * np.float32(1e-6)
    assert single_layer("here", "gelu", tensors) is None


def test_other_mlps_are_not_mistaken() -> None:
    random, C = np.random.default_rng(0), "multi_modal_projector."
    draw = lambda *shape: Stored(random.standard_normal(shape, np.float32))  # noqa: E731
    mlp = {f"{C}linear_1.weight": draw(WIDTH, FEATURES), f"{C}linear_2.weight": draw(WIDTH, WIDTH)}
    assert single_layer("here", "gelu", mlp) is None
    assert single_layer("here", "gelu", {}) is None
    wide = mlp | {f"{C}linear_1.weight": draw(WIDTH, WIDTH)}
    assert single_layer("here", "gelu", wide) is None
    one_bias = stored(connector("float32"))
    del one_bias[f"{C}linear_1.bias"]
    assert single_layer("here", "gelu", one_bias) is None


def model(text: int, kind: str | None = "linear") -> ModelConfig:
    language = LanguageConfig(vocab=64, width=text, layers=1, heads=2, kv_heads=2, head_dim=4)
    if kind is None:
        return ModelConfig(language=language)
    return ModelConfig(VISION, ConnectorConfig("mlp" if kind == "mlp" else "linear"), language, 7)


def test_which_form() -> None:
    assert choose_form(model(24)) == "gelu"
    assert choose_form(model(23)) == "linear"
    assert choose_form(model(24), "linear") == "linear"
    assert choose_form(model(24, "mlp")) is choose_form(model(24, None)) is None
    assert describe("gelu") is describe(None) is None
    note = describe("linear")
    assert note is not None
    assert "vLLM and llama.cpp do not" in note
    with pytest.raises(ConfigError, match=r"--connector-form gelu: .* 23 < 2 x 12; use linear"):
        choose_form(model(23), "gelu")
    for kind, said in (("mlp", "an mlp"), (None, "no")):
        with pytest.raises(ConfigError, match=f"--connector-form linear: the model has {said} con"):
            choose_form(model(24, kind), "linear")
