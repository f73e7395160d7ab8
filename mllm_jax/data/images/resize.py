"""Resizes RGB pictures to squares of pixels, by cropping, padding or stretching."""

import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Fit = Literal["crop", "pad", "stretch"]
Resample = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def to_square(
    image: Image.Image,
    size: int,
    fit: Fit,
    mean: tuple[float, float, float],
    max_pixels: int,
    resample: Resample = "bicubic",
) -> UInt8[np.ndarray, "size size C"]:
    """The picture as [size, size, 3], as `images.load_pixels` says.

    A strip of 1 x 20,000 pixels would be padded to 400 million, or resized to 336 x 6.7 million
    before all but a square is cut off. Where that is more than `max_pixels`, the part that stays
    is resized alone: equal but for rounding.
    """
    filter_ = _FILTERS[resample]
    if fit == "stretch":
        return np.asarray(resized(image, (size, size), max_pixels, resample))
    if fit == "pad":
        image = _padded(image, size, mean, max_pixels, resample)
    shape = _resized(image.size, size)
    if math.prod(shape) > max_pixels:
        return _resized_centre(image, shape, size, filter_)
    return _cropped(image.resize(shape, filter_), size)


def resized(
    image: Image.Image, shape: tuple[int, int], max_pixels: int, resample: Resample
) -> Image.Image:
    """The picture as (width, height), whatever its proportions.

    One with a side of whose square `max_pixels` is less is reduced by whole factors first, equal
    but for rounding: bicubic weights of 1,000,000 -> 336 take gigabytes.
    """
    gap = 3.0 if max(image.size) ** 2 > max_pixels else None
    return image.resize(shape, _FILTERS[resample], reducing_gap=gap)


def _padded(
    image: Image.Image,
    size: int,
    mean: tuple[float, float, float],
    max_pixels: int,
    resample: Resample,
) -> Image.Image:
    """The image in the middle of a square of the mean colour (LLaVA: mm_utils.expand2square)."""
    side = max(image.size)
    if side**2 > max_pixels:
        width, height = (max(1, round(length * size / side)) for length in image.size)
        image = resized(image, (width, height), max_pixels, resample)
        side = size
    width, height = image.size
    canvas = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _resized(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) with the shortest edge `size`, the other in proportion, rounded down.

    As transformers does (image_transforms.get_resize_output_image_size).
    """
    width, height = shape
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _cropped(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size C"]:
    """The central square of an image whose shorter side is `size` (transformers: center_crop).

    Of an odd rest, the larger half is cut off at the bottom or right.
    """
    left, top = ((length - size) // 2 for length in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _resized_centre(
    image: Image.Image, shape: tuple[int, int], size: int, filter_: Image.Resampling
) -> UInt8[np.ndarray, "size size C"]:
    """`_cropped` of the image resized to `shape`, without resizing what is cut off."""
    cut, box = [], []
    for length, resized in zip(image.size, shape, strict=True):
        scale = length / resized
        start = (resized - size) // 2 * scale
        stop = min(start + size * scale, length)
        reach = 2 * max(1, scale) + 1  # of the wider kernel, bicubic, in pixels of the image
        first, last = max(0, math.floor(start - reach)), min(length, math.ceil(stop + reach))
        cut.append((first, last))
        box.append((start - first, min(stop, last) - first))
    (left, right), (top, bottom) = cut
    part = image.crop((left, top, right, bottom))
    (x0, x1), (y0, y1) = box
    return np.asarray(part.resize((size, size), filter_, box=(x0, y0, x1, y1)))
