"""Reads how a picture has to be turned, and so its upright size, without decoding it."""

import struct
import zlib
from typing import Any, BinaryIO

from PIL import ExifTags, Image

# what PIL raises for broken files, depending on the format and on what is broken
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError, TypeError),
    *(OverflowError, struct.error, zlib.error),
)
# EXIF 2.32, 4.6.4 A, Orientation: where row 0 and column 0 of the stored pixels are
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = (5, 6, 7, 8)
_PNG_SIGNATURE = 8  # bytes
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that may name an orientation


def orientation(image: Image.Image) -> Any:
    """EXIF's orientation, 1 (upright) where there is none or nobody could read it.

    `ImageOps.exif_transpose` also writes all other tags again, and fails on odd ones of them.
    """
    try:
        # PngImageFile.getexif would decode the picture, see `_has_late_metadata`
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except BROKEN:  # a picture that is whole, with a block beside it that is not
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened picture as it will be when it is decoded and turned.

    Args:
        image: its header is read. It cannot be decoded any more.

    Raises:
        BROKEN: a picture that has to be decoded to know, and cannot be.
    """
    if image.format == "PNG" and _has_late_metadata(image):
        image.load()
    width, height = image.size
    # PIL turns TIFF pictures itself while it decodes them, and gives the size that they will have
    if image.format != "TIFF" and orientation(image) in _SIDES_SWAPPED:
        return width, height
    return height, width


def _has_late_metadata(image: Image.Image) -> bool:
    """Whether a PNG has metadata behind its pixels, where PIL finds it when it has decoded them."""
    file: BinaryIO = image.fp  # pyright: ignore
    place = file.tell()
    try:
        file.seek(_PNG_SIGNATURE)
        pixels_seen = False
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                return False
            if pixels_seen and kind in _PNG_METADATA:
                return True
            pixels_seen = pixels_seen or kind == b"IDAT"
            file.seek(size + 4, 1)  # and its checksum
        return False
    finally:
        file.seek(place)
