"""Lays an image out: how many tiles and placeholders it takes, and which patches they are.

LLaVA-1.5 gives every image the patches of one square. LLaVA-NeXT cuts large images into tiles:

    whole image, one square        base = rows x columns of its patches
    tiles of the best canvas       what is left of their patches when padding is cut off,
                                   and a newline after each line of patches

This is the one place that counts: index, packing, generation, export and preflight ask here.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mllm_jax.config.grids import GridsConfig

Size = tuple[int, int]  # height, width


class Window(NamedTuple):
    """Part of the joined tiles' patches that shows the image: padding is outside of it."""

    top: int
    left: int
    height: int
    width: int


class ImageLayout(NamedTuple):
    """What one image takes in a row."""

    tiles: int  # squares that the vision tower reads, the whole image's included
    placeholders: int  # positions of the row
    canvas: Size | None  # pixels of the tiles side by side; None where nothing is cut
    window: Window | None  # of the canvas, in patches; None where nothing is cut
    newline: bool  # whether a newline vector follows: each line of the window, or the one square


def image_layout(
    size: Size,
    side: int,
    patch: int,
    grids: GridsConfig | None = None,
    images: int = 1,
    pool: int = 1,
) -> ImageLayout:
    """How one image is laid out, as Hugging Face's processors or the original code do it.

    Args:
        size: of the image as it is stored and turned upright, in pixels.
        side: of the square that the vision tower reads, in pixels.
        patch: side of a patch, in pixels.
        grids: LLaVA-NeXT's canvases; None for LLaVA-1.5.
        images: how many its conversation has.
        pool: side of the square of patches that the connector makes one vector of; 1 with `grids`.

    Source: transformers, `LlavaProcessor` and `LlavaNextProcessor._get_number_of_features`, with
    the class token neither counted nor read (`vision_feature_select_strategy: default`); for
    `several_images: pad` LLaVA-VL/LLaVA-NeXT, llava/model/llava_arch.py.
    """
    line = pooled_line(side // patch, pool)
    if grids is None:
        return ImageLayout(1, line * line, None, None, newline=False)
    if images > 1 and grids.several_images == "pad":
        return ImageLayout(1, line * line + 1, None, None, newline=True)
    canvas = best_canvas(size, grids.canvases)
    rows, columns = canvas[0] // side, canvas[1] // side
    window = unpadded(size, (rows * line, columns * line), grids.rounding)
    placeholders = line * line + window.height * (window.width + 1)
    return ImageLayout(1 + rows * columns, placeholders, canvas, window, newline=True)


def pooled_line(patches: int, pool: int) -> int:
    """Vectors of a line of patches; the last vector of an odd line is of the patches there are."""
    return -(-patches // pool)


def best_canvas(size: Size, canvases: Sequence[Size]) -> Size:
    """The canvas that keeps most of the image's pixels, then wastes least; of equals the first.

    Source: haotian-liu/LLaVA, llava/mm_utils.py, select_best_resolution.
    """

    def keeps(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[1] / size[1], canvas[0] / size[0])
        pixels = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return pixels, pixels - canvas[0] * canvas[1]

    return max(canvases, key=keeps)


def unpadded(size: Size, patches: Size, rounding: Literal["hf", "original"] = "hf") -> Window:
    """The patches that an image of `size` covers on a canvas of `patches` (height, width).

    The image is fitted into the canvas and centred; an odd line of padding stays. Rounding to seven
    digits is transformers' (`modeling_llava_next.unpad_image`); the original cuts (llava_arch.py),
    so that 396 x 704 pixels cover 26 columns of 48 where transformers counts 28.
    """
    (height, width), (rows, columns) = size, patches
    if width / height > columns / rows:
        top = (rows - _cut(height * (columns / width), rounding)) // 2
        return Window(top, 0, rows - 2 * top, columns)
    left = (columns - _cut(width * (rows / height), rounding)) // 2
    return Window(0, left, rows, columns - 2 * left)


def _cut(length: float, rounding: Literal["hf", "original"]) -> int:
    return int(round(length, 7)) if rounding == "hf" else int(length)
