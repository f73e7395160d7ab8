"""Cuts a picture into the squares that the vision tower reads, and numbers their placeholders.

LLaVA-NeXT: the whole picture as one square, its sides not in proportion, then the tiles of a canvas
on which the picture is centred; of the tiles' patches those that show the picture take a place in
the row, line by line over all tiles, and a newline ends each line. With tiles of 2 x 2 patches:

    canvas of 1 x 2 tiles      4 5 | 8  9         patches of the whole picture:  0 1 2 3
                               6 7 | 10 11

    a square picture covers columns 1 and 2       placeholders  0 1 2 3  5 8 N  7 10 N

Values are those of transformers' LlavaNextImageProcessorPil, and of the original code
(haotian-liu/LLaVA, llava/mm_utils.py, resize_and_pad_image, divide_to_patches).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from mllm_jax.batch import NEWLINE
from mllm_jax.config.image_tokens import ImageLayout
from mllm_jax.config.model import VisionConfig
from mllm_jax.data.images.resize import Fit, Resample, resized, to_square

Placeholders = Int32[np.ndarray, "_"]


class Tiles(NamedTuple):
    """A picture as the vision tower reads it, and where its patches go."""

    pixels: UInt8[np.ndarray, "tiles height width C"]
    placeholders: Placeholders  # as if the picture were the first of its record


def tile(
    image: Image.Image,
    layout: ImageLayout,
    vision: VisionConfig,
    fit: Fit,
    max_pixels: int,
) -> Tiles:
    """An RGB picture, upright, by its layout.

    Args:
        image: the picture.
        layout: of its size, see `ModelConfig.image_layout`.
        vision: side of a square, patches, mean colour.
        fit: what happens to pictures that are not square where nothing is cut: `config.data`.
        max_pixels: as in `resize.to_square`.
    """
    side, mean, resample = vision.image_size, vision.image_mean, vision.resample
    numbers = placeholders(layout, vision)
    if layout.canvas is None:
        fit = "pad" if layout.newline else fit
        square = to_square(image, side, fit, mean, max_pixels, resample)
        return Tiles(square[None], numbers)
    whole = np.asarray(resized(image, (side, side), max_pixels, resample))
    canvas = np.asarray(_on_canvas(image, layout.canvas, max_pixels, resample))
    rows, columns = layout.canvas[0] // side, layout.canvas[1] // side
    cut = canvas.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return Tiles(np.concatenate([whole[None], cut]), numbers)


def _on_canvas(
    image: Image.Image, canvas: tuple[int, int], max_pixels: int, resample: Resample
) -> Image.Image:
    """The picture as large as fits, its sides in proportion, in the middle of a black canvas."""
    (height, width), (tall, wide) = canvas, (image.height, image.width)
    if width / wide < height / tall:
        shape = width, min(math.ceil(tall * (width / wide)), height)
    else:
        shape = min(math.ceil(wide * (height / tall)), width), height
    black = Image.new("RGB", (width, height))
    corner = (width - shape[0]) // 2, (height - shape[1]) // 2
    black.paste(resized(image, shape, max_pixels, resample), corner)
    return black


@functools.lru_cache(maxsize=4096)
def placeholders(layout: ImageLayout, vision: VisionConfig) -> Placeholders:
    """Which patch of its squares each placeholder of a picture is, or NEWLINE."""
    line = vision.image_size // vision.patch_size
    whole = np.arange(vision.patches, dtype=np.int32)
    newline = np.full(1, NEWLINE, np.int32)
    if layout.canvas is None or layout.window is None:
        vectors = layout.placeholders - layout.newline  # fewer than patches where they are pooled
        whole = np.arange(vectors, dtype=np.int32)
        numbers = np.concatenate([whole, newline]) if layout.newline else whole
    else:
        rows, columns = (length // vision.image_size for length in layout.canvas)
        tiles = np.arange(vision.patches, vision.patches * layout.tiles, dtype=np.int32)
        tiles = tiles.reshape(rows, columns, line, line).swapaxes(1, 2)
        top, left, height, width = layout.window
        seen = tiles.reshape(rows * line, -1)[top : top + height, left : left + width]
        lines = np.pad(seen, ((0, 0), (0, 1)), constant_values=NEWLINE)
        numbers = np.concatenate([whole, lines.ravel()])
    numbers.flags.writeable = False  # it is shared
    return numbers


def of_record(images: Sequence[tuple[int, Placeholders]], patches: int) -> list[Placeholders]:
    """The placeholders of each picture of a record, numbered over all its squares.

    Args:
        images: (squares, placeholders as if it were the first) of each.
        patches: of a square, P.
    """
    first, numbered = 0, []
    for tiles, numbers in images:
        numbered.append(np.where(numbers >= 0, numbers + first * patches, numbers))
        first += tiles
    return numbered
