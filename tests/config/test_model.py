"""What the network's sections compute; what they refuse stands in test_config.py."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig


@pytest.mark.parametrize(
    ("feature_layer", "used"), [(-2, 2), (-1, 3), (-4, 0), (0, 0), (3, 3), (1, 1)]
)
def test_used_layers_counts_what_stands_before_the_features(feature_layer: int, used: int):
    # hidden states 0..3 of three layers: state 0 is the embeddings, state i comes after layer i
    assert VisionConfig(28, 7, 48, 96, 3, 4, feature_layer=feature_layer).used_layers == used


VISION = VisionConfig(28, 14, 48, 96, 3, 4)
LANGUAGE = LanguageConfig(64, 32, 64, 1, 2, 1, 16)
SIZES = ((28, 56), (56, 28))


def test_grids_count_for_the_model():
    model = ModelConfig(VISION, ConnectorConfig(), LANGUAGE, 3, GridsConfig("hw", SIZES))
    assert model.patches == 4
    assert model.image_layout((28, 28)).placeholders == 10
    assert ModelConfig(VISION, ConnectorConfig(), LANGUAGE, 3).image_layout((9, 9)).tiles == 1


@pytest.mark.parametrize(
    ("vision", "sizes", "message"),
    [
        (VISION, ((28, 50),), r"sizes: \[28, 50\] is not a multiple of model.vision.image_size=28"),
        (VISION, ((28, 56), (28, 56)), "a canvas is listed twice"),
        (None, SIZES, "model.grids has no effect without vision and connector"),
    ],
)
def test_grids_that_do_not_fit(vision, sizes, message):
    def make() -> ModelConfig:
        connector = ConnectorConfig() if vision else None
        return ModelConfig(vision, connector, LANGUAGE, 3, GridsConfig("hw", sizes))

    with pytest.raises(ConfigError, match=message):
        make()
