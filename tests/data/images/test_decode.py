"""Pixels equal to transformers' PIL processor, whatever the size, mode and rotation."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mllm_jax.config.model import VisionConfig
from mllm_jax.data.images.decode import CLIP_MEAN, decode, fingerprint, load_pixels, normalise
from tests.data.pictures import encoded, noise

STD = VisionConfig().image_std


def stock(image: Image.Image, size: int) -> np.ndarray:
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
    return np.moveaxis(pixels, 0, -1)


SIDE = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(1, 40))
def test_crop_is_that_of_transformers(tmp_path_factory, width, height, size):
    path = tmp_path_factory.getbasetemp() / "crop.png"
    image = noise(width, height)
    image.save(path)
    pixels = load_pixels(path, size, "crop")
    assert pixels.shape == (size, size, 3)
    difference = normalise(pixels, CLIP_MEAN, STD) - stock(image, size)
    assert np.abs(difference).max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(SIDE, SIDE, st.integers(1, 40))
def test_pad_is_a_square_in_the_mean_colour(tmp_path_factory, width, height, size):
    path = tmp_path_factory.getbasetemp() / "pad.png"
    image = noise(width, height)
    image.save(path)
    side = max(width, height)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    expected = stock(square, size)
    found = normalise(load_pixels(path, size, "pad"), CLIP_MEAN, STD)
    assert np.abs(found - expected).max() < 1e-5


def test_large_photograph_size(tmp_path):
    image = noise(1031, 777)
    image.save(tmp_path / "a.png")
    found = normalise(load_pixels(tmp_path / "a.png", 336, "crop"), CLIP_MEAN, STD)
    assert np.abs(found - stock(image, 336)).max() < 1e-5


def palette(transparent: bool) -> Image.Image:
    image = noise(20, 14).quantize(16)
    if transparent:
        image.info["transparency"] = 3
    return image


def ramp(kind: type) -> Image.Image:
    """Values far above 255, which PIL cuts off."""
    return Image.fromarray((np.arange(280).reshape(14, 20) * 3).astype(kind))


MODES = {
    "1": lambda: noise(20, 14, "L").convert("1"),
    "L": lambda: noise(20, 14, "L"),
    "LA": lambda: noise(20, 14, "LA"),
    "P": lambda: palette(False),
    "P with transparency": lambda: palette(True),
    "RGB": lambda: noise(20, 14),
    "RGBA": lambda: noise(20, 14, "RGBA"),
    "CMYK": lambda: noise(20, 14, "CMYK"),
    "YCbCr": lambda: noise(20, 14).convert("YCbCr"),
    "I;16": lambda: ramp(np.uint16),
    "I": lambda: ramp(np.int32),
    "F": lambda: ramp(np.float32),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name, tmp_path):
    """As transformers' processor takes the same file, opened by PIL."""
    tiff = name in ("CMYK", "YCbCr", "I;16", "I", "F")
    path = tmp_path / ("a.tiff" if tiff else "a.png")
    image = MODES[name]()
    assert image.mode == name.split()[0]
    if "transparency" in image.info:
        image.save(path, transparency=image.info["transparency"])
    else:
        image.save(path)
    with Image.open(path) as opened:
        assert opened.mode == name.split()[0]
        expected = stock(opened, 12)
    for image in (path, str(path), path.read_bytes()):
        found = normalise(load_pixels(image, 12, "crop"), CLIP_MEAN, STD)
        assert np.abs(found - expected).max() < 1e-5


def test_sixteen_bits_are_cut_off_not_scaled(tmp_path):
    values = np.array([[0, 1, 255, 256, 40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png")[0, :, 0], [0, 1, 255, 255, 255, 255])


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load_pixels(tmp_path / "a.png", 6, "crop") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, tmp_path):
    """Eight ways to store the same picture: stored pixels differ, what we see does not."""
    seen = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    rotations = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen, 1),
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(seen, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(rotations[orientation]))
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_pixels(tmp_path / "a.png", 4, "crop"), seen[:, 1:5])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_of_photographs(orientation):
    """As PIL shows them; a camera's JPEG and a phone's WebP."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("JPEG", "WEBP"):
        data = encoded(noise(30, 20), format, exif=exif)
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert expected.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
        np.testing.assert_array_equal(decode(data), expected)


def test_fingerprint_by_hand():
    """A bit is set where a pixel is brighter than its right neighbour, the first in front."""
    grey = np.zeros((8, 9), np.uint8)
    grey[0, 0] = 200  # brighter than its neighbour: bit 63
    grey[7, 7] = 100  # bit 0; darker to the left of it: not bit 1
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    assert fingerprint(pixels) == 2**63 + 1
    assert fingerprint(np.full((5, 5, 3), 77, np.uint8)) == 0


def test_fingerprints_of_near_duplicates():
    def picture(seed: int) -> Image.Image:
        small = noise(8, 6, seed=seed)
        return small.resize((320, 240), Image.Resampling.BICUBIC)

    def print_of(data: bytes) -> int:
        return fingerprint(decode(data))

    originals = [print_of(encoded(picture(seed), "PNG")) for seed in range(20)]
    for seed, original in enumerate(originals):
        image = picture(seed)
        smaller = image.resize((150, 111), Image.Resampling.BILINEAR)
        brighter = image.point([min(255, int(x * 1.05 + 4)) for x in range(256)] * 3)
        for copy in (
            encoded(image, "JPEG", quality=60),
            encoded(smaller, "WEBP"),
            encoded(brighter, "PNG"),
        ):
            assert (print_of(copy) ^ original).bit_count() <= 4
    distances = [(a ^ b).bit_count() for n, a in enumerate(originals) for b in originals[:n]]
    assert min(distances) > 10


def _exif(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """One tag, little-endian (EXIF 2.32, 4.6.2)."""
    return b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, tag, kind, count, value, 0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL tells of the damage
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (_exif(0x0112, 3, 1, b"\6\0\0\0"), True),
        (_exif(0x0112, 3, 2, b"\6\0\6\0"), True),
        (_exif(0x0112, 2, 2, b"6\0\0\0"), False),  # text
        (_exif(0x0112, 3, 2**31, b"\6\0\0\0"), False),
        (_exif(0x0112, 3, 1, b"\x63\0\0\0"), False),  # no such orientation
        (b"Exif\0\0" + b"\xff" * 30, False),
        (b"Exif\0\0II*\0", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
    ],
)
def test_a_picture_is_whole_whatever_stands_in_its_exif_tags(exif, turned):
    data = encoded(noise(6, 4), "JPEG", exif=exif)
    assert decode(data).shape == ((6, 4, 3) if turned else (4, 6, 3))


def test_an_odd_tag_beside_the_orientation_does_not_break_a_picture():
    """PIL writes all tags anew when it turns a picture: a text as a whole number fails there."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0100] = 4
    data = exif.tobytes().replace(
        struct.pack("<HHI", 0x0100, 4, 1), struct.pack("<HHI", 0x0100, 2, 1)
    )
    whole = encoded(noise(6, 4), "JPEG", exif=data)
    assert decode(whole).shape == (6, 4, 3)
