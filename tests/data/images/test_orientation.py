"""Upright sizes read off the header: those of the decoded picture, in every format and turn."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from mllm_jax.data.images.decode import check, decode

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def encoded(kind: str, turn: int | None = None) -> bytes:
    """A picture of 24 x 16 stored pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif, data = Image.Exif(), io.BytesIO()
    if turn is not None:
        exif[ExifTags.Base.Orientation] = turn
    Image.fromarray(pixels).save(data, kind, **({"exif": exif} if turn is not None else {}))
    return data.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("turn", [None, *range(1, 9)])
def test_the_size_is_that_of_the_decoded_picture(kind, turn, monkeypatch):
    data = encoded(kind, turn)
    expected = (24, 16) if (turn or 1) >= 5 else (16, 24)
    assert decode(data).shape[:2] == expected

    def load(self):
        raise AssertionError("the picture is decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert check(data) == expected


def late(kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk behind its pixels."""
    data, body = encoded("PNG"), kind + content
    end = data.rindex(b"IEND") - 4
    chunk = struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return data[:end] + chunk + data[end:]


def test_a_png_that_names_its_turn_behind_its_pixels():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = late(b"eXIf", exif.tobytes()[6:])
    assert check(turned) == decode(turned).shape[:2] == (24, 16)
    commented = late(b"tEXt", b"Comment\0hau da")
    assert check(commented) == decode(commented).shape[:2] == (16, 24)
