"""What a template is given, by hand."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.messages import (
    FIRST,
    TEXT,
    as_parts,
    as_strings,
    count_images,
    kept_space,
    roles_of_texts,
    says_the_same_typed,
    take_texts,
)
from mllm_jax.data.records.parse import IMAGE, Turn

A, B, C = (chr(0xF0000 + n) for n in range(3))
TURNS = (
    Turn("system", (" s ",)),
    Turn("user", ("x", " y\n", IMAGE, "\n z ", "", IMAGE)),
    Turn("assistant", ("\n",)),
)


def test_as_strings():
    shape, texts = take_texts(TURNS)
    assert shape == (
        ("system", " ", TEXT, " "),
        ("user", "", TEXT, "", IMAGE, "", TEXT, "", IMAGE),
        ("assistant", "\n", TEXT, ""),
    )
    assert texts == ["s", "x y\n", "\n z ", ""]
    assert roles_of_texts(shape) == ["system", "user", "user", "assistant"]
    messages = as_strings(shape, "<im>")
    d = chr(0xF0003)
    contents = [f" {A} ", f"{B}<im>{C}<im>", f"\n{d}"]
    assert [m["content"] for m in messages] == contents
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    with pytest.raises(ConfigError, match="model reads no images"):
        as_strings(shape, "")


@pytest.mark.parametrize("parts", [(), ("",), ("", "")])
def test_an_empty_content_still_has_its_place(parts):
    shape, texts = take_texts([Turn("user", parts)])
    assert (shape, texts) == ((("user", "", TEXT, ""),), [""])
    assert as_strings(shape, "") == [{"role": "user", "content": A}]


def test_as_parts():
    """The line break after an image goes: the template writes it."""
    messages, texts, roles = as_parts(TURNS[1:2])
    image = {"type": "image"}
    text = [{"type": "text", "text": f"{A}\n"}, {"type": "text", "text": f" {B} "}]
    assert messages == [{"role": "user", "content": [text[0], image, text[1], image]}]
    assert (texts, roles) == (["x y", "z"], ["user", "user"])


def test_white_space_behind_an_image_is_a_text():
    """Of typed parts it stays, around an empty text; the line break that ends the image goes."""
    messages, texts, _ = as_parts([Turn("user", (IMAGE, "\n ")), Turn("user", (IMAGE, "\n"))])
    image = {"type": "image"}
    assert messages[0]["content"] == [image, {"type": "text", "text": f" {A}"}]
    assert messages[1]["content"] == [image] and texts == [""]


@pytest.mark.parametrize(
    ("parts", "same"),
    [
        (("a",), True),
        ((), True),
        ((IMAGE,), True),
        ((IMAGE, "\n", IMAGE, "\na"), True),
        ((IMAGE, "a"), False),
        ((IMAGE, IMAGE), False),
        (("a", IMAGE, " b"), False),
    ],
)
def test_says_the_same_typed(parts, same):
    assert says_the_same_typed(Turn("user", parts)) is same


def test_count_images():
    assert count_images(TURNS) == 2


def test_kept_space_tells_what_a_template_trims():
    a, b = (chr(FIRST + n) for n in range(2))
    space = [(" ", "\n"), ("\t", " ")]
    bare = f"u: {a}!\na: {b}"
    assert kept_space(bare, bare, space) == (("", ""), ("", ""))
    assert kept_space(bare, f"u:  {a}\n!\na: \t{b} ", space) == tuple(space)
    assert kept_space(bare, f"u: {a}\n!\na: \t{b}", space) == (("", "\n"), ("\t", ""))
    assert kept_space(bare, f"u: {a}\n?\na: {b}", space) is None
    assert kept_space(bare, f"u: {b}!\na: {a}", space) is None
    assert kept_space(f"a: {b}", f"a: {b} ", space) == (("", ""), ("", " "))


def test_a_text_of_white_space_alone_stays_a_text():
    """After an image: the white space at the end goes around it, the text itself is empty."""
    shape, texts = take_texts([Turn("user", (IMAGE, "\n "))])
    assert shape == (("user", IMAGE, "", TEXT, "\n "),)
    assert texts == [""]
    for parts in ((IMAGE, "\n"), (IMAGE, "", "\n")):  # however it is written
        assert take_texts([Turn("user", parts)]) == ((("user", IMAGE, "", TEXT, "\n"),), [""])
