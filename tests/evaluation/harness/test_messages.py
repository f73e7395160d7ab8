"""Messages of lmms-eval as our turns: images in their places, the same pixels, nothing lost."""

import io

import numpy as np
import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.images import decode
from mllm_jax.data.records.parse import IMAGE, Turn, user_turn
from mllm_jax.evaluation.harness.messages import (
    file_of,
    from_context,
    from_messages,
    to_messages,
)


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def image(path: str) -> dict[str, str]:
    return {"type": "image", "url": path}


def text(of: str) -> dict[str, str]:
    return {"type": "text", "text": of}


def test_turns_of_messages():
    messages = [
        {"role": "system", "content": "Erantzun laburki."},
        {"role": "user", "content": [image("a.png"), image("b.png"), text("Zer da?")]},
        {"role": "assistant", "content": [text("Katu bat.")]},
        {"role": "user", "content": [text("Eta "), image("c.png"), text("hau?")]},
    ]
    turns, images = from_messages(messages, "task a, 0")
    assert images == ("a.png", "b.png", "c.png")
    assert turns == [
        Turn("system", ("Erantzun laburki.",)),
        user_turn("Zer da?", 2),
        Turn("assistant", ("Katu bat.",)),
        Turn("user", ("Eta ", IMAGE, "\n", "hau?")),
    ]


def test_there_and_back():
    for turns in (
        [user_turn("Zer da?", 2)],
        [user_turn("\nZer da?")],
        [user_turn("A?", 1), Turn("assistant", ("Bai",)), Turn("user", ("B ", IMAGE, "\n", "c"))],
    ):
        images = ["a.png", "b.png"][: sum(part is IMAGE for t in turns for part in t.parts)]
        assert from_messages(to_messages(turns, images), "a") == (turns, tuple(images))


def test_images_of_a_text_are_first_or_where_it_says():
    assert from_context("Zer da?", ["a.png"], "a")[0] == [user_turn("Zer da?", 1)]
    assert from_context("<image>\nZer da?", ["a.png"], "a")[0] == [user_turn("Zer da?", 1)]
    assert from_context("Zer da?", None, "a") == ([user_turn("Zer da?")], ())
    assert from_context("Zer da <image>?", None, "a") == ([user_turn("Zer da <image>?")], ())
    turns, images = from_context("A <image> eta B <image>?", ["a.png", "b.png"], "a")
    assert turns == [Turn("user", ("A ", IMAGE, "\n", " eta B ", IMAGE, "\n", "?"))]
    assert images == ("a.png", "b.png")
    # not as many marks as images: they are text
    assert from_context("<image 1> <image>", ["a.png"] * 2, "a")[0] == [
        user_turn("<image 1> <image>", 2)
    ]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_the_same_pixels(mode, tmp_path):
    """As our own reader sees them in the file."""
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture(mode).save(name)
    with Image.open(name) as opened:
        encoded = file_of(opened, "a")
    np.testing.assert_array_equal(decode.decode(encoded), decode.decode(name))


def test_turned_photos(tmp_path):
    """A photo that is to be shown upright keeps the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture().save(tmp_path / "a.jpg", exif=exif, quality=100)
    with Image.open(tmp_path / "a.jpg") as opened:
        encoded = file_of(opened, "a")
    np.testing.assert_array_equal(decode.decode(encoded), decode.decode(tmp_path / "a.jpg"))
    assert isinstance(encoded, bytes)
    assert Image.open(io.BytesIO(encoded)).getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": ""}], "role 'tool' is not one of system, user, assistant"),
        ([{"role": "user", "content": [{"type": "video", "url": "a"}]}], "'video' cannot be read"),
        ([{"role": "user", "content": [{"type": "image", "url": 7}]}], "7 is not an image"),
        ([{"role": "system", "content": [image("a.png")]}], "the system's message has an image"),
    ],
)
def test_what_is_refused(messages, message):
    with pytest.raises(ConfigError, match=f"task a, 3: {message}"):
        from_messages(messages, "task a, 3")
