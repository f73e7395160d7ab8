"""Every fault of an image file, with its code and its message; nothing else is ever raised."""

import contextlib
import errno
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.images import decode as images
from mllm_jax.data.images.decode import FORMATS, MAX_SIDE, BadImage, check, decode, load_pixels
from mllm_jax.data.record_errors import RecordError
from tests.data.pictures import encoded, noise


def refused(image: str | Path | bytes, act=lambda image: load_pixels(image, 8, "crop")) -> BadImage:
    with pytest.raises(BadImage) as error:
        act(image)
    assert "\n" not in str(error.value)
    return error.value


def test_missing(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opened, it would wait for ever
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a").touch()
    for name in ("nowhere.png", "", "pipe.png", "loop.png", "a/b.png", "a" * 300):
        for act in (check, decode):
            bad = refused(tmp_path / name, act)
            assert (bad.code, bad.reason) == (
                "image_missing",
                f"{tmp_path / name}: no such image file",
            )


def test_empty(tmp_path):
    (tmp_path / "a.jpg").touch()
    bad = refused(tmp_path / "a.jpg", check)
    reason = f"{tmp_path / 'a.jpg'}: not an image: the file is empty"
    assert (bad.code, bad.reason) == ("image_empty", reason)
    assert str(refused(b"")) == "image of 0 bytes: not an image: the file is empty"


@pytest.mark.parametrize(
    "content",
    [
        b"this is text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # a program, for an interpreter
        b"%PDF-1.7",
        b"\0" * 100,
    ],
)
def test_no_image(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    bad = refused(tmp_path / "a.png", check)
    assert bad.code == "image_type"
    assert bad.reason == (
        f"{tmp_path / 'a.png'}: not an image that PIL reads as one of AVIF, BMP, GIF, JPEG, "
        "JPEG2000, PNG, PPM, TIFF, WEBP"
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(format, share):
    data = encoded(noise(60, 60), format)
    bad = refused(data[: int(share * len(data))])
    assert bad.code == "image_broken"
    assert ": the image is broken: " in bad.reason


def test_truncated_word_for_word(tmp_path):
    path = tmp_path / "a.jpg"
    data = encoded(noise(60, 60), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    check(path)  # its header is good
    with pytest.raises(BadImage) as error:
        decode(path)
    assert error.value.reason.startswith(f"{path}: the image is broken: image file is truncated (")
    path.write_bytes(encoded(noise(60, 60), "PNG")[:40])
    assert refused(path, check).reason == (
        f"{path}: the image is broken: it begins like PNG, but its header cannot be read"
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# 34 bytes that decode to 16383 x 16383 pixels
WEBP_BOMB = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")


def test_bombs_are_refused_by_their_header(monkeypatch):
    """Sizes at which PIL would warn, and at which it would raise an error of its own."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for width, height in ((10_001, 10_000), (12_000, 12_000), (60_000, 60_000)):
        for act in (check, decode):
            bad = refused(bomb(width, height), act)
            assert bad.code == "image_pixels"
            assert bad.reason == (
                f"image of 66 bytes: {width} x {height} pixels are more than "
                "data.max_pixels=100000000"
            )
    assert refused(WEBP_BOMB).code == "image_pixels"


def test_the_limit_is_the_configs():
    data = encoded(noise(20, 10), "PNG")
    for act in (
        check,
        decode,
        lambda image, limit: load_pixels(image, 4, "crop", max_pixels=limit),
    ):
        act(data, 200)
        with pytest.raises(BadImage, match=r"20 x 10 pixels are more than data\.max_pixels=199"):
            act(data, 199)
    check(bomb(20_000, 20_000), 400_000_000)  # above PIL's own limit


def several(format: str) -> bytes:
    return encoded(noise(9, 9), format, save_all=True, append_images=[noise(9, 9, seed=1)])


@pytest.mark.parametrize("format", ["AVIF", "GIF", "PNG", "TIFF", "WEBP"])  # TIFF has pages
def test_several_frames(format, tmp_path):
    path = tmp_path / "a.image"
    path.write_bytes(several(format))
    for act in (check, decode):
        bad = refused(path, act)
        assert (bad.code, bad.reason) == (
            "image_animated",
            f"{path}: the image has several frames",
        )


@pytest.mark.parametrize("format", FORMATS)
def test_one_frame_is_a_picture(format):
    data = encoded(noise(9, 7), format)
    check(data)
    assert decode(data).shape == (7, 9, 3)


def test_a_phones_second_image_is_no_animation():
    first = noise(9, 9)
    data = encoded(first, "MPO", save_all=True, append_images=[noise(5, 5, seed=1)])
    np.testing.assert_array_equal(decode(data), decode(encoded(first, "JPEG")))


def test_a_failing_file_system_is_no_fault_of_the_image(tmp_path, monkeypatch):
    """It may be skipped by no policy: another day the record is there."""
    path = tmp_path / "a.png"
    noise(9, 9).save(path)

    def fail(self):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ConfigError) as error:
        decode(path)
    assert not isinstance(error.value, RecordError)
    assert str(error.value) == f"{path}: cannot be read: Input/output error"


def test_faults_travel_between_processes():
    bad = pickle.loads(pickle.dumps(refused(b"")))
    assert (type(bad), bad.code, str(bad)) == (BadImage, "image_empty", str(refused(b"")))
    assert isinstance(bad, RecordError) and isinstance(bad, ConfigError)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL, about broken metadata
def test_broken_bytes_make_no_other_error(format, random):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if format in ("AVIF", "JPEG", "PNG", "TIFF", "WEBP") else {}
    data = bytearray(encoded(noise(12, 10), format, **options))
    for _ in range(random.choice([1, 2, 5, 20])):
        data[int(random.triangular(0, len(data) - 1, 0))] = random.randrange(256)
    with contextlib.suppress(BadImage):
        load_pixels(bytes(data), 8, random.choice(["crop", "pad"]), max_pixels=10**6)


@pytest.mark.parametrize(("width", "height"), [(100_000_000, 1), (1, 100_000_000)])
def test_a_side_that_pil_cannot_hold_is_refused_by_the_header(width: int, height: int):
    """PIL ends with a bare MemoryError: 24 bits a pixel, and a line's bits in 32-bit numbers."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + b"5\xaf\x06\x1e"
    for act in (check, decode):
        bad = refused(data, act)
        assert bad.code == "image_pixels"
        assert f"{width} x {height}: a side of more than {MAX_SIDE}" in bad.reason


def test_a_picture_that_does_not_fit_into_memory_is_named(monkeypatch):
    def exhausted(image):
        raise MemoryError

    monkeypatch.setattr(images, "_rgb", exhausted)
    bad = refused(encoded(noise(5, 4), "PNG"), decode)
    assert bad.code == "image_pixels"
    assert bad.reason.endswith("5 x 4 pixels do not fit into memory")
