"""Tiles and their placeholders: by hand, and as transformers cuts and packs them."""

import dataclasses
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_jax.batch import NEWLINE
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.data.images import decode
from mllm_jax.data.images.tiles import of_record, placeholders

N = NEWLINE
LANGUAGE = LanguageConfig(vocab=64, width=8, mlp=8, layers=1, heads=2, kv_heads=1, head_dim=4)
# width x height: thin and broad, small and large, odd paddings, every canvas
SIZES = [
    *((28, 28), (20, 20), (29, 28), (47, 31), (40, 53), (84, 28), (28, 84), (56, 28), (3, 200)),
    *((200, 3), (160, 90), (90, 160), (37, 66), (1, 1), (57, 56), (41, 26), (83, 81)),
]


CANVASES = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))  # LLaVA-NeXT's, in squares
VISION = VisionConfig(image_size=28, patch_size=14, width=8, mlp=8, layers=2, heads=2)


def model(order: Any, patch: int = 14, **grids: Any) -> ModelConfig:
    """Squares of 28 pixels."""
    vision = dataclasses.replace(VISION, patch_size=patch)
    options: dict[str, Any] = {"sizes": CANVASES} | grids
    canvases = GridsConfig(order, **options)
    return ModelConfig(vision, ConnectorConfig(), LANGUAGE, 1, canvases)


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """Noise with a slope, so that no two places look alike."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    slope = np.linspace(0, 127, width)[None, :, None] + np.zeros((height, 1, 1))
    data = io.BytesIO()
    Image.fromarray((noise + slope).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("hw", [0, 1, 2, 3, 5, 8, N, 7, 10, N]),
        ("wh", [0, 1, 2, 3, 6, 7, N, 8, 9, N]),
    ],
)
def test_placeholders_of_a_square_by_hand(order, expected):
    """28 x 28 pixels: a wide canvas in transformers' order, a tall one in the original's."""
    config = model(order, sizes=((28, 56), (56, 28), (56, 56)))
    layout = config.image_layout((28, 28))
    assert (layout.tiles, layout.placeholders) == (3, 10)
    assert config.vision is not None
    assert placeholders(layout, config.vision).tolist() == expected
    tiles = decode.load_tiles(picture(28, 28), config, "crop")
    assert tiles.pixels.shape == (3, 28, 28, 3)
    assert tiles.placeholders.tolist() == expected


def test_pictures_of_a_record_are_numbered_one_after_another():
    one, square = np.array([0, 1, 4, N, 5, N], np.int32), np.array([0, 1, N], np.int32)
    numbered = of_record([(3, one), (1, square), (3, one)], 2)
    lists = [[0, 1, 4, N, 5, N], [6, 7, N], [8, 9, 12, N, 13, N]]
    assert [numbers.tolist() for numbers in numbered] == lists


def test_several_pictures_are_padded_where_the_original_does():
    """One square in the mean colour each, and a newline behind it."""
    config = model("wh", rounding="original", several_images="pad")
    tiles = decode.load_tiles(picture(40, 20), config, "crop", images=2)
    assert tiles.placeholders.tolist() == [0, 1, 2, 3, N]
    square = decode.load_tiles(picture(40, 20), ModelConfig(config.vision, ConnectorConfig(),
                               LANGUAGE, 1), "pad")  # fmt: skip
    np.testing.assert_array_equal(tiles.pixels, square.pixels)
    assert square.placeholders.tolist() == [0, 1, 2, 3]
    assert tiles.pixels[0, 0, 0].tolist() == [int(255 * m) for m in VISION.image_mean]
    alone = decode.load_tiles(picture(40, 20), config, "crop", images=1)
    assert len(alone.pixels) == 3


def test_the_canvas_is_black_and_the_picture_in_its_middle():
    """A white picture of 28 x 27 on a canvas of 28 x 56: half of 28 to the left, 29 wide."""
    white = io.BytesIO()
    Image.new("RGB", (28, 27), "white").save(white, "PNG")
    tiles = decode.load_tiles(white.getvalue(), model("hw", sizes=((28, 56),)), "crop").pixels
    canvas = np.concatenate([tiles[1], tiles[2]], axis=1)
    assert tiles[0].min() == 255  # the whole picture, its sides not in proportion
    shown = canvas[:, :, 0] == 255
    assert shown.all(axis=0).tolist() == [13 <= x < 13 + 30 for x in range(56)]
    assert canvas[~shown].max() == 0


def test_strips_take_little_memory_whatever_their_length():
    """1 x 400,000 pixels; reduced by whole factors first, equal but for rounding."""
    strip = np.repeat(np.arange(0, 200, 20, dtype=np.uint8), 40_000)
    data = io.BytesIO()
    Image.fromarray(np.stack([strip[None]] * 3, axis=-1)).save(data, "PNG")
    config = model("hw")
    exact = decode.load_tiles(data.getvalue(), config, "crop", max_pixels=10**12).pixels
    short = decode.load_tiles(data.getvalue(), config, "crop", max_pixels=10**6).pixels
    assert exact.shape == short.shape == (3, 28, 28, 3)
    assert np.abs(exact.astype(int) - short).max() <= 2


@pytest.fixture(scope="module")
def processor():
    from transformers import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=VISION.image_mean,
        image_std=VISION.image_std,
        image_grid_pinpoints=[list(size) for size in CANVASES],
    )


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size, processor):
    data, config = picture(*size), model("hw")
    ours = decode.load_tiles(data, config, "crop").pixels
    values = decode.normalise(ours, VISION.image_mean, VISION.image_std)
    theirs = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
    assert theirs.shape == (len(ours), 3, 28, 28)
    assert np.abs(values.transpose(0, 3, 1, 2) - theirs).max() <= 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_placeholders_pack_features_as_transformers_does(size):
    """Random features through LlavaNextModel's packing = ours, taken by the placeholders."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    config = model("hw", patch=4)  # 7 x 7 patches: windows with odd edges
    layout = config.image_layout((size[1], size[0]))
    vision = config.vision
    assert vision is not None
    patches = vision.patches
    features = np.random.default_rng(1).standard_normal((layout.tiles, patches, 5), np.float32)
    newline = np.arange(5, dtype=np.float32)
    theirs, counts = LlavaNextModel.pack_image_features(
        SimpleNamespace(  # pyright: ignore
            config=SimpleNamespace(
                vision_config=SimpleNamespace(image_size=28, patch_size=4),
                image_grid_pinpoints=[list(size) for size in CANVASES],
            )
        ),
        [torch.tensor(features)],
        torch.tensor([[size[1], size[0]]]),
        vision_feature_select_strategy="default",
        image_newline=torch.tensor(newline),
    )
    rows = np.concatenate([features.reshape(-1, 5), newline[None]])
    numbers = placeholders(layout, vision)
    index = np.where(numbers == NEWLINE, layout.tiles * patches, numbers)
    assert counts.tolist() == [layout.placeholders] == [len(index)]
    np.testing.assert_array_equal(rows[index], theirs[0].numpy())
