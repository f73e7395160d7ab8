"""Decodes image files to the pixels that towers expect, equal to Hugging Face's PIL processors.

An image is a path, or the encoded bytes that a shard holds. Its header is checked before anything
is decoded: kind, pixels, frames. One resize everywhere (PIL, the tower's filter), in training,
generation and evaluation alike:

    crop      shortest edge to `size`, then the central square         (CLIP, LLaVA pretraining)
    pad       a square canvas in the mean colour, then to `size`       (LLaVA-1.5 fine-tuning)
    stretch   both sides to `size`, whatever they were                 (SigLIP)

The model gets uint8 and normalises on the device; `normalise` is the reference for tests and
export checks.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import DataConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.images.orientation import BROKEN, UPRIGHT, orientation, upright_size
from mllm_jax.data.images.resize import Fit, Resample, to_square
from mllm_jax.data.images.tiles import Tiles, tile
from mllm_jax.data.record_errors import RecordError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/CLIP, clip/clip.py
MAX_PIXELS = DataConfig.max_pixels  # for those who read no data section
# Pixels of one side: PIL keeps a line's bits in 32-bit numbers, and its broadest pixel has 64 bits.
MAX_SIDE = 2**25
# Raster formats whose header tells the size. PIL reads others too: EPS and WMF call an interpreter,
# ICO and ICNS hold images of another size than they say.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Phones append a preview or a gain map to an ordinary JPEG; its first image is the picture.
_FIRST_IS_THE_PICTURE = "MPO"
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class BadImage(RecordError, ConfigError):
    """An image that cannot be used: a record error, or bad input if a person named the file."""

    def __reduce__(self):
        return BadImage, (self.code, self.reason)


def check(image: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Checks an image by its header, and gives its upright (height, width).

    Args:
        image: a path, or the bytes of an image file.
        max_pixels: an image with more is refused before it is decoded.

    Raises:
        BadImage: image_missing, image_empty, image_type, image_pixels or image_animated; a header
            that is broken is image_broken.
        ConfigError: the file system does not let us read the file; that is not a record error.
    """
    with _opened(image, max_pixels) as opened:
        try:
            return upright_size(opened)
        except BROKEN as error:
            raise _broken(_name(image), error) from error


def decode(
    image: str | Path | bytes, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width C"]:
    """All pixels of an image as RGB, upright.

    Raises:
        BadImage, ConfigError: as `check`; image_broken for what cannot be decoded to its end.
    """
    return np.asarray(_upright_rgb(image, max_pixels))


def load_pixels(
    image: str | Path | bytes,
    size: int,
    fit: Fit,
    mean: tuple[float, float, float] = CLIP_MEAN,
    max_pixels: int = MAX_PIXELS,
    resample: Resample = "bicubic",
) -> UInt8[np.ndarray, "height width C"]:
    """An image as RGB pixels [size, size, 3].

    Args:
        image: a path, or the bytes of an image file in one of FORMATS. EXIF rotation is applied;
            transparency is laid on white.
        size: side of the square in pixels.
        fit: what happens to images that are not square, see the top of this file.
        mean: channel means in 0..1; `pad` fills with int(255 * mean).
        max_pixels: an image with more is refused; see also `resizing.to_square`.
        resample: filter of the resize.

    Raises:
        BadImage, ConfigError: as `decode`.
    """
    return to_square(_upright_rgb(image, max_pixels), size, fit, mean, max_pixels, resample)


def load_tiles(
    image: str | Path | bytes,
    model: ModelConfig,
    fit: Fit,
    images: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Tiles:
    """An image as the vision tower reads it: one square, or LLaVA-NeXT's tiles.

    Args:
        image: as in `load_pixels`.
        model: how it is laid out.
        fit: what happens to images that are not square where nothing is cut into tiles.
        images: how many its conversation has.
        max_pixels: an image with more is refused.

    Raises:
        BadImage, ConfigError: as `decode`.
    """
    assert model.vision is not None, "an image reached a model without a vision tower"
    picture = _upright_rgb(image, max_pixels)
    layout = model.image_layout((picture.height, picture.width), images)
    return tile(picture, layout, model.vision, fit, max_pixels)


def fingerprint(
    pixels: UInt8[np.ndarray, "height width *C"],
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> int:
    """64 bits that near-duplicates share but for a few: the difference hash.

    The image is shrunk to 9 x 8 grey pixels; a bit is set where a pixel is brighter than its right
    neighbour, row by row, the first in the highest bit. Source: Neal Krawetz, "Kind of Like That",
    hackerfactor.com, 2013: more than 10 different bits mean another picture. Plain areas have no
    bits: every image of one colour has the fingerprint 0.

    Args:
        pixels: of the whole image, RGB or grey.
        window: left, top, right and bottom of the part that is looked at, from 0 to 1.
    """
    image = Image.fromarray(pixels).convert("L")
    left, top, right, bottom = window
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    # reduced by whole factors first: three times as fast, and the order of the pixels is the same
    values = np.asarray(image.resize((9, 8), Image.Resampling.LANCZOS, box, reducing_gap=3.0))
    return int.from_bytes(np.packbits(values[:, :-1] > values[:, 1:]).tobytes(), "big")


def normalise(
    pixels: UInt8[np.ndarray, "*batch C"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float32[np.ndarray, "*batch C"]:
    """uint8 pixels -> (x / 255 - mean) / std, as the towers were trained."""
    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    return (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


# ----------------------------------------------------------------------------------------- opening


@contextmanager
def _opened(image: str | Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read and checked."""
    name = _name(image)
    with _file(image, name) as file:
        opened = _identified(file, name)
        width, height = opened.size
        if width * height > max_pixels:
            raise BadImage(
                "image_pixels",
                f"{name}: {width} x {height} pixels are more than data.max_pixels={max_pixels}",
            )
        if max(width, height) > MAX_SIDE:
            raise BadImage(
                "image_pixels", f"{name}: {width} x {height}: a side of more than {MAX_SIDE} pixels"
            )
        if _is_animated(opened, name):
            raise BadImage("image_animated", f"{name}: the image has several frames")
        yield opened


def _file(image: str | Path | bytes, name: str) -> io.BytesIO | io.BufferedReader:
    if isinstance(image, bytes):
        size, file = len(image), io.BytesIO(image)
    else:
        try:
            status = os.stat(image)
            if not stat.S_ISREG(status.st_mode):
                raise BadImage("image_missing", f"{name}: no such image file")
            size, file = status.st_size, open(image, "rb")  # noqa: SIM115  _opened closes it
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise _broken(name, error) from error
            raise BadImage("image_missing", f"{name}: no such image file") from error
    if size > 0:
        return file
    file.close()
    raise BadImage("image_empty", f"{name}: not an image: the file is empty")


def _identified(file: io.BytesIO | io.BufferedReader, name: str) -> Image.Image:
    # PIL's own limit warns or raises, whatever ours is; ours is held against the header right away
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(16)
        kinds = [kind for kind in FORMATS if _begins_like(kind, start)]
        if not kinds:
            raise BadImage(
                "image_type",
                f"{name}: not an image that PIL reads as one of {', '.join(FORMATS)}",
            ) from error
        reason = f"it begins like {' or '.join(kinds)}, but its header cannot be read"
        raise BadImage("image_broken", f"{name}: the image is broken: {reason}") from error
    except BROKEN as error:
        raise _broken(name, error) from error


def _begins_like(kind: str, start: bytes) -> bool:
    accept = Image.OPEN[kind][1]
    return accept is not None and accept(start) is True


def _is_animated(opened: Image.Image, name: str) -> bool:
    try:
        frames = getattr(opened, "is_animated", False)
    except BROKEN as error:
        raise _broken(name, error) from error
    return frames and opened.format != _FIRST_IS_THE_PICTURE


def _upright_rgb(image: str | Path | bytes, max_pixels: int) -> Image.Image:
    """Decoded to the end, turned as EXIF says, RGB."""
    with _opened(image, max_pixels) as opened:
        name = _name(image)
        try:
            opened.load()
            method = UPRIGHT.get(orientation(opened))
            return _rgb(opened if method is None else opened.transpose(method))
        except MemoryError as error:
            reason = f"{name}: {opened.width} x {opened.height} pixels do not fit into memory"
            raise BadImage("image_pixels", reason) from error
        except BROKEN as error:
            raise _broken(name, error) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency over white (transformers 5: convert_to_rgb).

    Values of more than 8 bits are cut off at 255, not scaled, as PIL and so transformers do.
    """
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode == "RGB":
        image.load()  # the file is closed soon; convert would copy every pixel
        return image
    return image.convert("RGB")


def _name(image: str | Path | bytes) -> str:
    return f"image of {len(image)} bytes" if isinstance(image, bytes) else str(image)


def _broken(name: str, error: Exception) -> BadImage | ConfigError:
    if isinstance(error, OSError) and error.errno is not None:
        # the file system failed, not PIL: not a record error, so it may not be skipped
        return ConfigError(f"{name}: cannot be read: {error.strerror}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return BadImage("image_broken", f"{name}: the image is broken: {reason}")
