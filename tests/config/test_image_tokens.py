"""Layouts of images: transformers' own counts for any size, and the original code's by a table."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_jax.config.grids import NEXT_SIZES, GridsConfig
from mllm_jax.config.image_tokens import ImageLayout, Window, best_canvas, image_layout, unpadded
from mllm_jax.config.model import VisionConfig

SIDE = st.integers(1, 2000)
HF = GridsConfig("hw")
ORIGINAL = GridsConfig("wh", rounding="original", several_images="pad")
# width x height -> (canvas, rows x columns of its patches, placeholders) by the original code of
# haotian-liu/LLaVA, and by transformers; canvases as each writes them, wh and hw
COUNTS = {
    (336, 336): ((336, 672), (24, 24), 1176, (336, 672), 1176),
    (300, 300): ((336, 672), (24, 24), 1176, (336, 672), 1176),
    (337, 336): ((672, 336), (24, 24), 1176, (336, 672), 1176),
    (500, 500): ((672, 672), (48, 48), 2928, (672, 672), 2928),
    (672, 672): ((672, 672), (48, 48), 2928, (672, 672), 2928),
    (640, 480): ((672, 672), (36, 48), 2340, (672, 672), 2340),
    (480, 640): ((672, 672), (48, 36), 2352, (672, 672), 2352),
    (1008, 336): ((1008, 336), (24, 72), 2328, (336, 1008), 2328),
    (336, 1008): ((336, 1008), (72, 24), 2376, (1008, 336), 2376),
    (672, 336): ((672, 336), (24, 48), 1752, (336, 672), 1752),
    (336, 672): ((336, 672), (48, 24), 1776, (672, 336), 1776),
    (1920, 1080): ((672, 672), (28, 48), 1948, (672, 672), 1948),
    (1000, 100): ((1008, 336), (8, 72), 1160, (336, 1008), 1160),
    (396, 704): ((672, 672), (48, 26), 1872, (672, 672), 1968),
    (704, 396): ((672, 672), (26, 48), 1850, (672, 672), 1948),
    (503, 316): ((672, 336), (24, 38), 1512, (336, 672), 1512),
    (700, 300): ((1008, 336), (24, 56), 1944, (336, 1008), 1944),
    (2000, 50): ((1008, 336), (2, 72), 722, (336, 1008), 722),
}


def count(size, grids=None, images=1) -> int:
    return image_layout(size, 336, 14, grids, images).placeholders


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    """(LLaVA's, LLaVA-NeXT's) with CLIP ViT-L/14-336 and a tokenizer of one word."""
    from tokenizers import Tokenizer, models
    from transformers import (
        CLIPImageProcessorPil,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = models.WordLevel({"<image>": 0, "<unk>": 1}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), unk_token="<unk>", extra_special_tokens=["<image>"]
    )
    shared: dict[str, Any] = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    square = {"height": 336, "width": 336}
    size: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": square}
    return (
        LlavaProcessor(
            CLIPImageProcessorPil(**size), tokenizer, num_additional_image_tokens=1, **shared
        ),
        LlavaNextProcessor(
            LlavaNextImageProcessorPil(**size, image_grid_pinpoints=[list(g) for g in NEXT_SIZES]),
            tokenizer,
            num_additional_image_tokens=1,
            **shared,
        ),
    )


def theirs(processor, size) -> int:
    (count,) = processor._get_num_multimodal_tokens(image_sizes=[size])["num_image_tokens"]
    return count


@settings(max_examples=500, deadline=None)
@given(SIDE, SIDE)
def test_counts_are_those_of_transformers(processors, height, width):
    llava, following = processors
    size = (height, width)
    assert count(size) == theirs(llava, size) == VisionConfig().patches
    assert count(size, HF) == theirs(following, size)


def test_a_grid_of_sizes(processors):
    """Every 37th height and 41st width, and all borders between grids along the square."""
    _, following = processors
    sizes = [(h, w) for h in range(1, 2001, 37) for w in range(1, 2001, 41)]
    sizes += [(s + d, s) for s in range(330, 345) for d in (-1, 0, 1)]
    for size in sizes:
        assert count(size, HF) == theirs(following, size), size


@pytest.mark.parametrize("size", COUNTS, ids=str)
def test_known_layouts(size):
    width, height = size
    original_canvas, covered, original, hf_canvas, hf = COUNTS[size]
    layout = image_layout((height, width), 336, 14, ORIGINAL)
    assert layout.canvas == original_canvas[::-1] and layout.window is not None
    assert (layout.window.height, layout.window.width) == covered
    assert layout.placeholders == original == 576 + covered[0] * (covered[1] + 1)
    layout = image_layout((height, width), 336, 14, HF)
    assert (layout.canvas, layout.placeholders) == (hf_canvas, hf)


def test_tiles():
    assert image_layout((9, 9), 336, 14) == ImageLayout(1, 576, None, None, newline=False)
    for size, tiles in [((100, 100), 3), ((500, 500), 5), ((336, 1008), 4), ((1008, 336), 4)]:
        assert image_layout(size, 336, 14, HF).tiles == tiles


def test_several_images():
    """The original pads each to one square; Hugging Face tiles every one."""
    size = (480, 640)
    assert image_layout(size, 336, 14, ORIGINAL, 2) == ImageLayout(1, 577, None, None, True)
    assert image_layout(size, 336, 14, HF, 2) == image_layout(size, 336, 14, HF)


def test_small_enough_for_a_hand():
    """Side 28, patch 14: 4 patches of the whole image, then 2 lines of 2, each with a newline."""
    sizes = ((28, 56), (56, 28), (56, 56))
    hf, original = GridsConfig("hw", sizes), GridsConfig("wh", sizes, rounding="original")
    wide = image_layout((28, 28), 28, 14, hf)
    tall = image_layout((28, 28), 28, 14, original)
    assert wide == ImageLayout(3, 10, (28, 56), Window(0, 1, 2, 2), newline=True)
    assert tall == ImageLayout(3, 10, (56, 28), Window(1, 0, 2, 2), newline=True)


def test_best_canvas_and_padding():
    assert best_canvas((336, 336), NEXT_SIZES) == (336, 672)  # of equals the first
    assert best_canvas((336, 1000), NEXT_SIZES) == (336, 1008)
    assert unpadded((10, 40), (48, 48)) == Window(18, 0, 12, 48)
    assert unpadded((10, 37), (48, 48)) == Window(18, 0, 12, 48)  # of 12.97 lines 12
    assert unpadded((10, 36), (48, 48)) == Window(17, 0, 14, 48)  # 13: an odd line stays
    assert unpadded((704, 396), (48, 48)) == Window(0, 10, 48, 28)  # of 26.999999999999996
    assert unpadded((704, 396), (48, 48), "original") == Window(0, 11, 48, 26)


@pytest.mark.parametrize("size", [(20, 20), (48, 64), (700, 90), (90, 700), (400, 400)], ids=str)
def test_a_whole_prompt(processors, size):
    """Not the counting function alone: the placeholders of a processed image and prompt."""
    image = Image.new("RGB", size[::-1])
    for processor, grids in zip(processors, (None, HF), strict=True):
        ids = processor(images=[image], text="<image>")["input_ids"][0]
        assert ids.count(0) == len(ids) == count(size, grids)
