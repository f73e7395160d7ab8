"""The section `adapter`: which matrices it may name, and what it says to those it may not."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.adapter import AdapterConfig, is_adapter, kernel_of, shapes

PATHS = [
    "vision/patch_embedding/kernel",
    "vision/layers/attention/q/kernel",
    "vision/layers/attention/q/bias",
    "connector/linear_1/kernel",
    "language/embedding",
    "language/layers/attention/q/kernel",
    "language/layers/attention/out/kernel",
    "language/layers/attention_norm/scale",
    "language/layers/mlp/gate/kernel",
    "language/head/kernel",
]


def test_it_names_matrices_by_their_whole_paths():
    assert AdapterConfig("language/layers/.*/kernel").targets(PATHS) == [
        "language/layers/attention/q/kernel",
        "language/layers/attention/out/kernel",
        "language/layers/mlp/gate/kernel",
    ]
    assert AdapterConfig("(vision|language)/layers/attention/q/kernel").targets(PATHS) == [
        "vision/layers/attention/q/kernel",
        "language/layers/attention/q/kernel",
    ]
    assert AdapterConfig("connector/.*/kernel").targets(PATHS) == ["connector/linear_1/kernel"]


WRONG = [
    (
        "language/layers/attention/q",
        "adapter.match='language/layers/attention/q' matches no matrix of the model; it must match "
        "whole paths, as language/layers/attention/q/kernel",
    ),
    (
        "q_proj",
        "adapter.match='q_proj' matches no matrix of the model; it must match whole paths, as "
        "language/layers/mlp/gate/kernel",
    ),
    (
        "language/.*",
        "adapter.match='language/.*' matches language/embedding, "
        "language/layers/attention_norm/scale, language/head/kernel, which cannot have an adapter "
        "(norms, biases, embeddings and the head); end it with /kernel, as "
        "language/layers/.*/kernel",
    ),
    (
        "vision/.*/(kernel|bias)",
        "adapter.match='vision/.*/(kernel|bias)' matches vision/patch_embedding/kernel, "
        "vision/layers/attention/q/bias, which cannot have an adapter (norms, biases, embeddings "
        "and the head); end it with /kernel, as language/layers/.*/kernel",
    ),
]


@pytest.mark.parametrize(("match", "message"), WRONG)
def test_what_cannot_have_an_adapter_is_refused_by_name(match, message):
    with pytest.raises(ConfigError) as error:
        AdapterConfig(match).targets(PATHS)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "adapter.rank=0 must lie in [1, 65_536]"),
        ({"alpha": 0.0}, "adapter.alpha=0.0 must lie in (0, 1_000_000]"),
        ({"alpha": -1.0}, "adapter.alpha=-1.0 must lie in (0, 1_000_000]"),
        ({"dropout": 1.0}, "adapter.dropout=1.0 must lie in [0, 1)"),
    ],
)
def test_numbers_outside_their_range_are_refused(fields, message):
    with pytest.raises(ConfigError) as error:
        AdapterConfig("language/layers/.*/kernel", **fields)
    assert str(error.value) == message


def test_scales():
    assert AdapterConfig(".*", rank=16, alpha=32.0).scale == 2
    assert AdapterConfig(".*", rank=16, alpha=32.0, rslora=True).scale == 8


def test_shapes_stand_beside_their_matrix():
    """Heads are outputs of q and inputs of out."""
    assert shapes("language/layers/attention/q/kernel", (3, 24, 4, 8), 5, dora=False) == {
        "language/layers/attention/q/lora_a": (3, 24, 5),
        "language/layers/attention/q/lora_b": (3, 5, 4, 8),
    }
    assert shapes("language/layers/attention/out/kernel", (3, 4, 8, 24), 5, dora=True) == {
        "language/layers/attention/out/lora_a": (3, 4, 8, 5),
        "language/layers/attention/out/lora_b": (3, 5, 24),
        "language/layers/attention/out/lora_magnitude": (3, 24),
    }
    assert shapes("connector/linear_1/kernel", (16, 24), 5, dora=False) == {
        "connector/linear_1/lora_a": (16, 5),
        "connector/linear_1/lora_b": (5, 24),
    }
    assert shapes("language/layers/attention/q/kernel", (3, 24, 4, 8), 5, dora=True)[
        "language/layers/attention/q/lora_magnitude"
    ] == (3, 4, 8)
    assert is_adapter("connector/linear_1/lora_b")
    assert is_adapter("connector/linear_1/lora_magnitude")
    assert not is_adapter("connector/linear_1/kernel")
    assert kernel_of("connector/linear_1/lora_b") == "connector/linear_1/kernel"
