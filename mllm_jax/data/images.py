"""Image files -> pixels as CLIP wants them, equal to Hugging Face's PIL processor.

One resize everywhere (PIL, bicubic), in training, generation and evaluation alike:

    crop   shortest edge to `size`, then the central square         (CLIP, LLaVA pretraining)
    pad    a square canvas in the mean colour, then to `size`       (LLaVA-1.5 fine-tuning)

The model gets uint8 and normalises on the device; `normalise` is the reference for tests and
export checks.
"""

import struct
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from mllm_jax.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/CLIP, clip/clip.py
# what PIL raises for broken files, depending on the format
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)


def check(path: str | Path) -> None:
    """Opens an image file as far as its header. Raises ConfigError when missing or no image."""
    with _open(path):
        pass


def load_pixels(
    path: str | Path,
    size: int,
    fit: Literal["crop", "pad"],
    mean: tuple[float, float, float] = CLIP_MEAN,
) -> UInt8[np.ndarray, "height width C"]:
    """An image file as RGB pixels [size, size, 3].

    Args:
        path: any format PIL reads. EXIF rotation is applied; transparency is laid on white.
        size: side of the square in pixels.
        fit: what happens to images that are not square, see the top of this file.
        mean: channel means in 0..1; `pad` fills with int(255 * mean).

    Raises:
        ConfigError: the file is missing, no image, or broken.
    """
    with _open(path) as opened:
        try:
            image = _rgb(ImageOps.exif_transpose(opened))
        except _BROKEN as error:
            raise ConfigError(f"{path}: the image is broken: {_line(error)}") from error
    if fit == "pad":
        image = _square(image, mean)
    return _crop(np.asarray(_resize(image, size)), size)


def normalise(
    pixels: UInt8[np.ndarray, "*batch C"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float32[np.ndarray, "*batch C"]:
    """uint8 pixels -> (x / 255 - mean) / std, as CLIP was trained."""
    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    return (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def _open(path: str | Path) -> Image.Image:
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such image file")
    try:
        return Image.open(path)
    except _BROKEN as error:
        raise ConfigError(f"{path}: not an image that PIL reads: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency over white (transformers 5: convert_to_rgb)."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    """The image in the middle of a square of the mean colour (LLaVA: mm_utils.expand2square)."""
    width, height = image.size
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _resize(image: Image.Image, size: int) -> Image.Image:
    """Shortest edge to `size`, the other in proportion, rounded down.

    As transformers does (image_transforms.get_resize_output_image_size).
    """
    width, height = image.size
    if width <= height:
        shape = (size, int(size * height / width))
    else:
        shape = (int(size * width / height), size)
    return image.resize(shape, Image.Resampling.BICUBIC)


def _crop(pixels: UInt8[np.ndarray, "h w C"], size: int) -> UInt8[np.ndarray, "size size C"]:
    """The central square of pixels whose shorter side is `size` (transformers: center_crop).

    Of an odd rest, the larger half is cut off at the bottom or right.
    """
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])
