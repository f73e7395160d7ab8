"""Seats of an image = transformers' own processors, for images of any size; and known counts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_jax.config.image_tokens import NEXT_GRIDS, best_grid, image_tokens, unpadded
from mllm_jax.config.model import VisionConfig

SIDE = st.integers(1, 2000)
# height, width; counted by hand from the publication's rule (24 x 24 patches a tile)
NEXT_COUNTS = {
    (336, 336): 1176, (300, 300): 1176, (672, 672): 2928, (500, 500): 2928, (480, 640): 2340,
    (640, 480): 2352, (336, 1008): 2328, (1008, 336): 2376, (336, 672): 1752, (672, 336): 1776,
    (1080, 1920): 1948, (100, 1000): 1160, (50, 2000): 722,
}  # fmt: skip


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
            LlavaNextImageProcessorPil(**size, image_grid_pinpoints=[list(g) for g in NEXT_GRIDS]),
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
    assert image_tokens(size, 336, 14) == theirs(llava, size) == VisionConfig().patches
    assert image_tokens(size, 336, 14, NEXT_GRIDS) == theirs(following, size)


def test_a_grid_of_sizes(processors):
    """Every 37th height and 41st width, and all borders between grids along the square."""
    _, following = processors
    sizes = [(h, w) for h in range(1, 2001, 37) for w in range(1, 2001, 41)]
    sizes += [(s + d, s) for s in range(330, 345) for d in (-1, 0, 1)]
    for size in sizes:
        assert image_tokens(size, 336, 14, NEXT_GRIDS) == theirs(following, size), size


@pytest.mark.parametrize("size", NEXT_COUNTS, ids=str)
def test_known_counts(size):
    assert image_tokens(size, 336, 14, NEXT_GRIDS) == NEXT_COUNTS[size]


def test_best_grid_and_padding():
    assert best_grid((336, 336), NEXT_GRIDS) == (336, 672)  # of equals the first
    assert best_grid((336, 1000), NEXT_GRIDS) == (336, 1008)
    assert unpadded((10, 40), (48, 48)) == (12, 48)
    assert unpadded((10, 37), (48, 48)) == (48 - (48 - 12) // 2 * 2, 48)


@pytest.mark.parametrize("size", [(20, 20), (48, 64), (700, 90), (90, 700), (400, 400)], ids=str)
def test_a_whole_prompt(processors, size):
    """Not the counting function alone: the placeholders of a processed image and prompt."""
    image = Image.new("RGB", size[::-1])
    for processor, grids in zip(processors, ((), NEXT_GRIDS), strict=True):
        ids = processor(images=[image], text="<image>")["input_ids"][0]
        assert ids.count(0) == len(ids) == image_tokens(size, 336, 14, grids)
