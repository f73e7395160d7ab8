"""Images of all sizes in an index: counted by their own tiles and placeholders."""

import dataclasses

import numpy as np
import pytest
from PIL import ExifTags, Image

from mllm_jax.batch import NEWLINE, TEXT
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import VisionConfig
from mllm_jax.data.images.decode import load_tiles
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.stream import StreamIndex, report
from mllm_jax.data.loader import Loader

# squares of 4 pixels in 2 x 2 patches; (width, height) -> tiles, placeholders:
# one square and the canvas's, 4 and the lines of the canvas with a newline each
PICTURES = {
    "square": ((8, 8), 5, 4 + 4 * (4 + 1)),
    "wide": ((8, 4), 3, 4 + 2 * (4 + 1)),
    "tall": ((4, 9), 3, 4 + 4 * (2 + 1)),
    "small": ((4, 4), 3, 4 + 2 * (2 + 1)),
}
GRIDS = GridsConfig("hw", sizes=((4, 8), (8, 4), (8, 8)))


def record(key: str, images: list[str], reply: str = "Katu bat.") -> dict:
    turns = [
        {"from": "human", "value": "<image>\n" * len(images) + "Zer?"},
        {"from": "gpt", "value": reply},
    ]
    names = [f"{name}.png" for name in images]
    return {"id": key, "image": names, "language": "eu", "conversations": turns}


RECORDS = [
    *(record(name, [name]) for name in PICTURES),
    record("two", ["wide", "small"]),
    record("none", []),
    record("text before", ["tall"], "Katu bat eta txakur bat. " * 2),
]


@pytest.fixture
def build(write, picture, tokenizer, model, make_data, tmp_path):
    for name, (size, _, _) in PICTURES.items():
        picture(f"{name}.png", 50 + len(name), size)

    def make(records=RECORDS, grids=GRIDS, vision=model.vision, **changes) -> StreamIndex:
        streams = {"s": StreamConfig(str(write("s.json", records)), format="llama3")}
        data = make_data(streams, **({"length": 90, "image_slots": 6} | changes))
        network = dataclasses.replace(model, vision=vision, grids=grids)
        return open_streams(Mixture(data, network, tokenizer))[0]

    return make


def text_size(index: StreamIndex, n: int) -> int:
    """Tokens of an example that are no placeholders."""
    return int((index[n].placeholders == TEXT).sum())


def test_every_image_is_counted_by_its_own_layout(build):
    index = build()
    for n, (_, tiles, placeholders) in enumerate(PICTURES.values()):
        assert index.tiles[n] == tiles
        assert index.sizes[n] == text_size(index, n) + placeholders == len(index[n].tokens)
    assert index.images.tolist() == [1, 1, 1, 1, 2, 0, 1]
    assert index.tiles.tolist() == [5, 3, 3, 3, 6, 0, 3]
    assert index.sizes[4] == text_size(index, 4) + PICTURES["wide"][2] + PICTURES["small"][2]
    found = report(index, ("eu", "en"))
    assert (found.images, found.tiles) == (7, 23)
    assert found.tokens == sum(len(index[n].tokens) for n in range(len(index)))


def test_placeholders_are_those_of_the_pictures(build, tmp_path, model):
    """The second of two pictures is numbered behind the three squares of the first."""
    example = build()[4]
    network = dataclasses.replace(model, grids=GRIDS)
    wide, small = (
        load_tiles(tmp_path / f"{name}.png", network, "crop", images=2).placeholders
        for name in ("wide", "small")
    )
    behind = np.where(small == NEWLINE, NEWLINE, small + 3 * 4)
    placed = example.placeholders[example.placeholders != TEXT]
    np.testing.assert_array_equal(placed, np.concatenate([wide, behind]))
    assert not example.weights[example.placeholders != TEXT].any()


def test_several_images_as_the_original_pads_them(build):
    """One square each and a newline; an image that is alone is cut into tiles."""
    index = build(grids=dataclasses.replace(GRIDS, several_images="pad"))
    assert index.tiles.tolist() == [5, 3, 3, 3, 2, 0, 3]
    assert index.sizes[4] == text_size(index, 4) + 2 * (4 + 1)
    placed = index[4].placeholders[index[4].placeholders != TEXT]
    assert placed.tolist() == [0, 1, 2, 3, NEWLINE, 4, 5, 6, 7, NEWLINE]


def test_records_with_more_tiles_than_slots(build):
    index = build(image_slots=3, over_long="drop")
    assert [index.key(n) for n in range(len(index))] == [
        f"s/{name}" for name in ("wide", "tall", "small", "none", "text before")
    ]
    assert index.dropped == {"eu": 2}
    message = r"'square' has 5 tiles, but data.image_slots=3; record 'two' has 6 tiles, but"
    with pytest.raises(ConfigError, match=message):
        build(image_slots=3, over_long="fail")


def test_cut_records_lose_text_and_no_part_of_an_image(build):
    whole = build()
    length = int(whole.sizes[6]) - 3
    index = build(length=length, over_long="cut")
    cut = next(n for n in range(len(index)) if index.key(n) == "s/text before")
    assert index.sizes[cut] == len(index[cut].tokens) == length
    np.testing.assert_array_equal(index[cut].tokens, whole[6].tokens[:length])
    np.testing.assert_array_equal(index[cut].placeholders, whole[6].placeholders[:length])
    first = int(np.argmax(whole[6].weights))  # trained token
    assert "s/text before" in [index.key(n) for n in range(len(index))]
    index = build(length=first, over_long="cut")
    assert "s/text before" not in [index.key(n) for n in range(len(index))]


@pytest.mark.parametrize(("turn", "count"), [(1, 2340), (6, 2352), (3, 2340), (8, 2352)])
def test_a_photo_that_exif_turns(turn, count, build, tmp_path):
    """640 x 480 stored pixels at the full size of CLIP ViT-L/14-336, read off the header."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    Image.new("RGB", (640, 480), "red").save(tmp_path / "photo.png", exif=exif)
    vision = VisionConfig(width=8, mlp=8, layers=2, heads=2)
    index = build([record("photo", ["photo"])], GridsConfig("hw"), vision, length=3000)
    assert (index.tiles[0], index.sizes[0] - text_size(index, 0)) == (5, count)


def test_a_picture_that_has_another_size_than_when_it_was_read(
    build, picture, tokenizer, model, make_data, tmp_path
):
    build()
    picture("tall.png", 50, (8, 4))
    streams = {"s": StreamConfig(str(tmp_path / "s.json"), format="llama3")}
    data = make_data(streams, length=90, image_slots=6, rows=8)
    loader = Loader(data, dataclasses.replace(model, grids=GRIDS), tokenizer, 0)
    with pytest.raises(ConfigError, match=r"tall.png: the image has another size than when"):
        loader.batch(0)
