"""Pixels equal to transformers' PIL processor, whatever the size, mode and rotation."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_jax.data.images import CLIP_MEAN, check, load_pixels, normalise
from mllm_jax.errors import ConfigError
from mllm_jax.model_config import VisionConfig

STD = VisionConfig().image_std


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    channels = {"RGB": 3, "RGBA": 4, "LA": 2, "L": 1, "CMYK": 4}[mode]
    values = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


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


MODES = {
    "RGBA": lambda: noise(20, 14, "RGBA"),
    "LA": lambda: noise(20, 14, "LA"),
    "L": lambda: noise(20, 14, "L"),
    "CMYK": lambda: noise(20, 14, "CMYK"),
    "1": lambda: noise(20, 14, "L").convert("1"),
    "P": lambda: palette(False),
    "P with transparency": lambda: palette(True),
    "I;16": lambda: Image.fromarray(np.arange(280, dtype=np.uint16).reshape(14, 20)),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name, tmp_path):
    path = tmp_path / ("a.tiff" if name in ("CMYK", "I;16") else "a.png")
    image = MODES[name]()
    if "transparency" in image.info:
        image.save(path, transparency=image.info["transparency"])
    else:
        image.save(path)
    with Image.open(path) as opened:
        expected = stock(opened, 12)
    found = normalise(load_pixels(path, 12, "crop"), CLIP_MEAN, STD)
    assert np.abs(found - expected).max() < 1e-5


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


def test_what_is_no_image(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.png: no such image file"):
        load_pixels(tmp_path / "nowhere.png", 8, "crop")
    (tmp_path / "text.png").write_text("this is text")
    for act in (check, lambda path: load_pixels(path, 8, "crop")):
        with pytest.raises(ConfigError, match=r"text\.png: not an image") as error:
            act(tmp_path / "text.png")
        assert "\n" not in str(error.value)
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"empty\.jpg: not an image"):
        check(tmp_path / "empty.jpg")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files(format, tmp_path):
    buffer = io.BytesIO()
    noise(60, 60).save(buffer, format)
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ConfigError, match=rf"a\.{format.lower()}: "):
        load_pixels(path, 8, "crop")
