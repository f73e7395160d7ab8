"""What the network's sections compute; what they refuse stands in test_config.py."""

import pytest

from mllm_jax.config.model import VisionConfig


@pytest.mark.parametrize(
    ("feature_layer", "used"), [(-2, 2), (-1, 3), (-4, 0), (0, 0), (3, 3), (1, 1)]
)
def test_used_layers_counts_what_stands_before_the_features(feature_layer: int, used: int):
    # hidden states 0..3 of three layers: state 0 is the embeddings, state i comes after layer i
    assert VisionConfig(28, 7, 48, 96, 3, 4, feature_layer=feature_layer).used_layers == used
