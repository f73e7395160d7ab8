"""A row by hand: every token, chip and number of its card."""

import base64
import io
import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

from mllm_jax.report.rows import ImageView, Origin, RowView, row_card

TEXTS = {0: "!", 1: "<bos>", 2: "Zer", 3: "\n", 4: " katu", 5: "<eot>", 9: "<image>"}
ORIGINS = (Origin("captions", "eu", "a/<b>", 2, 41), Origin("texts", "en", "7", 0, 42))


@pytest.fixture
def row() -> RowView:
    """Two examples, two images of two patches in three slots, three places of padding.

    tokens    B # # # # Zer _katu E   B Zer E   . . .
    trained                   t   t         t
    """

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    pixels[0], pixels[1, :, :2] = (250, 3, 7), (1, 2, 3)
    return RowView(
        number=5,
        tokens=ints(1, 9, 9, 9, 9, 2, 4, 5, 1, 2, 5, 0, 0, 0),
        targets=ints(9, 9, 9, 9, 2, 4, 5, 0, 2, 5, 0, 0, 0, 0),
        weights=np.array([0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0], np.float32),
        segments=ints(1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0),
        positions=ints(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0, 0, 0),
        image_index=ints(-1, 0, 1, 2, 3, -1, -1, -1, -1, -1, -1, -1, -1, -1),
        pixels=pixels,
        patches=2,
        images=[ImageView(0, 1), ImageView(1, 1)],
        origins=ORIGINS,
        texts=TEXTS,
        control=frozenset({1, 5, 9}),
    )


def flows(card: str) -> list[str]:
    """The tokens of every segment as plain text, then the padding."""
    found = re.findall(r"<p class=flow[^>]*>(.*?)</p>", card, re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", part)).replace("\n", "|").strip("|") for part in found]


def titles(card: str, tag: str = r"\w+") -> list[str]:
    return [unescape(said) for said in re.findall(rf"<{tag} class=[^>]*title='([^']*)'", card)]


def test_every_token_stands_there_in_order(row: RowView):
    assert flows(row_card(row)) == [
        "<bos>|image 1 × 2|image 2 × 2|Zer|␣katu|<eot>",
        "<bos>|Zer|<eot>",
        "padding × 3",
    ]


def test_trained_tokens_are_targets_that_count(row: RowView):
    card = row_card(row)
    trained = re.findall(r"<u class=[^>]*>(.*?)</u>", card)
    assert trained == ["<i class=space>␣</i>katu", "&lt;eot&gt;", "&lt;eot&gt;"]
    assert len(trained) == row.weights.sum()


def test_headings_say_where_it_comes_from(row: RowView):
    card = row_card(row)
    words = " ".join(unescape(re.sub(r"<[^>]+>", " ", card)).split())
    assert "Row 5 2 examples, 11 of 14 tokens, 3 trained, 2 of 3 image slots" in words
    first = "1 captions / a/<b> Basque (eu), epoch 2, 8 tokens, 2 trained, position 41 of the"
    assert first in words
    assert "2 texts / 7 English (en), epoch 0, 3 tokens, 1 trained, position 42 of the" in words
    assert "a/<b>" not in card


def test_tooltips(row: RowView):
    said = titles(row_card(row))
    assert said[0] == (
        "place 0 of the row · id 1 · example 1, position 0 · weight 0 · "
        "target: “<image>”, id 9, weight 0"
    )
    assert said[2] == ("places 3 to 4 of the row · id 9 · example 1, positions 3 to 4 · weight 0")
    assert said[3].endswith("position 5 · weight 0 · target: “␣katu”, id 4, weight 1")
    assert said[5].endswith("position 7 · weight 1 · target: none, the example ends")
    assert said[6].startswith("place 8 of the row · id 1 · example 2, position 0 · weight 0 · ")


def test_the_pictures_are_the_models_pixels(row: RowView):
    card = row_card(row)
    found = re.findall(r"src='data:image/png;base64,([^']+)'", card)
    for slot, text in enumerate(found):
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            np.testing.assert_array_equal(np.asarray(image), row.pixels[slot])
    assert len(found) == 2
    assert "1 image slot unused" in card
    assert set(re.findall(r"href='#([^']+)'", card)) == set(
        re.findall(r"figure [^>]*id=([^>]+)>", card)
    )


def test_two_images_of_two_examples_side_by_side_are_two_chips(row: RowView):
    """An image may end an example, and the next begin with one."""
    seats = np.array([-1, 0, 1, 2, 3], np.int32)
    fields = {key: np.array(value, np.int32) for key, value in {
        "tokens": [1, 9, 9, 9, 9], "targets": [9, 9, 0, 9, 0], "segments": [1, 1, 1, 2, 2],
        "positions": [0, 1, 2, 0, 1],
    }.items()}  # fmt: skip
    view = row._replace(**fields, image_index=seats, weights=np.zeros(5, np.float32))
    assert flows(row_card(view)) == ["<bos>|image 1 × 2", "image 2 × 2"]


def test_tiles_and_the_places_of_newlines(row: RowView):
    """An image of two tiles in lines of two patches, and one square with a newline behind it."""
    places = np.array([-1, 0, 1, 2, 4, 8, 3, 5, 8, 6, 7, 8, -1, -1], np.int32)
    segments = np.array([1] * 13 + [0], np.int32)
    view = row._replace(
        image_index=places,
        segments=segments,
        tokens=np.where(places >= 0, 9, row.tokens),
        pixels=np.zeros((4, 4, 4, 3), np.uint8),
        images=[ImageView(0, 3), ImageView(3, 1)],
        origins=ORIGINS[:1],
    )
    card = row_card(view)
    assert flows(card)[0] == (
        "<bos>|image 1 × 2|tiles of image 1: 2 × (2 + newline)|image 2 × 2 + newline|!"
    )
    assert re.findall(r"newlines at places ([0-9, ]+)", card) == ["5, 8", "11"]
    captions = re.findall(r"<figcaption>([^<]+)</figcaption>", card)
    assert captions == [
        "image 1, example 1",
        "image 1, tile 1 of 2",
        "image 1, tile 2 of 2",
        "image 2, example 1",
    ]
    assert "4 of 4 image slots" in card


def test_a_row_of_text_alone(row: RowView):
    nothing = np.full(14, -1, np.int32)
    card = row_card(
        row._replace(
            tokens=np.where(row.tokens == 9, 3, row.tokens),
            image_index=nothing,
            pixels=np.zeros((0, 1, 1, 3), np.uint8),
            patches=0,
            images=[],
        )
    )
    assert "image" not in card.replace("&lt;image&gt;", "")
    assert "<br>\n" in card, "a new line begins where the text has one"
    assert flows(card)[0] == "<bos>|↵|↵|↵|↵|Zer|␣katu|<eot>"
