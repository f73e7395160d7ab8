"""Copies of a picture are found, other pictures are not; ImageHash as the reference of the hash."""

import imagehash
import numpy as np
import pytest
from PIL import Image

from mllm_jax.corpus import pictures
from mllm_jax.data.images.decode import fingerprint
from tests.support import made_pictures

CROPS = [
    (0.03, 0, 0, 0),
    (0, 0.03, 0, 0),
    (0, 0, 0.03, 0.03),
    (0.03, 0.03, 0, 0),
    (0.015, 0.015, 0.015, 0.015),
    (0.03, 0.03, 0.03, 0.03),
    (0.02, 0, 0.01, 0.025),
]


def is_near(data: np.ndarray, task: np.ndarray) -> bool:
    """Whether the hashes alone would find it."""
    first = pictures.hashes(data, pictures.DATA_WINDOWS)
    second = pictures.hashes(task, pictures.TASK_WINDOWS)
    return int(np.bitwise_count(first[:, None] ^ second).min()) <= pictures.DISTANCE


def is_found(data: Image.Image, task: Image.Image) -> bool:
    """All three steps."""
    a, b = np.asarray(data), np.asarray(task)
    thumbnails = (pictures.thumbnail(pixels)[None] for pixels in (a, b))
    rough = bool(pictures.look_alike(*thumbnails)[0])
    return is_near(a, b) and rough and pictures.same_picture(a, b)


def test_distances_are_those_of_imagehash():
    generator = np.random.default_rng(0)
    images = [made_pictures.photograph(generator) for _ in range(8)]
    images += [made_pictures.encoded(image, 40) for image in images]
    ours = np.array([fingerprint(np.asarray(image)) for image in images], np.uint64)
    theirs = [imagehash.dhash(image) for image in images]
    distances = np.bitwise_count(ours[:, None] ^ ours)
    expected = np.array([[a - b for b in theirs] for a in theirs])
    # theirs sets the bit where the right neighbour is brighter, and does not reduce the image
    # by whole factors first: the same but for neighbours that are (nearly) equal
    apart = np.abs(distances.astype(int) - expected)
    assert apart.max() <= 3
    assert apart.mean() < 1.2


@pytest.mark.parametrize("edges", CROPS)
def test_crops_of_three_percent_are_found_in_both_directions(edges):
    """All 98 photographs; docs/decontamination.md has more. One hash a picture finds fewer."""
    generator = np.random.default_rng(1)
    one_hash = []
    for number in range(7):
        whole = made_pictures.photograph(generator, 200 + 10 * number, 160)
        copy = made_pictures.encoded(
            made_pictures.resized(made_pictures.cropped(whole, edges), 0.7), 60
        )
        assert is_found(copy, whole)
        assert is_found(whole, copy)
        pair = [fingerprint(np.asarray(image)) for image in (whole, copy)]
        one_hash.append((pair[0] ^ pair[1]).bit_count() <= pictures.DISTANCE)
    if edges == (0.03, 0.03, 0.03, 0.03):
        assert not all(one_hash)


@pytest.mark.parametrize("make", [made_pictures.page, made_pictures.drawing])
def test_copies_of_pages_and_drawings_are_found(make):
    generator = np.random.default_rng(2)
    for edges in CROPS[:6:2]:
        whole = make(generator)
        copy = made_pictures.encoded(made_pictures.cropped(whole, edges), 75)
        assert is_found(copy, whole)
        assert is_found(whole, copy)


@pytest.mark.parametrize("make", [made_pictures.photograph, made_pictures.drawing])
def test_other_pictures_are_not_found(make):
    generator = np.random.default_rng(3)
    images = [make(generator) for _ in range(14)]
    assert not [(a, b) for a in range(14) for b in range(a) if is_found(images[a], images[b])]


def test_pages_of_one_layout_are_told_apart_by_their_text():
    """Their hashes are alike: what tells them apart is the comparison of the pictures."""
    generator = np.random.default_rng(4)
    images = [made_pictures.page(generator) for _ in range(5)]
    pairs = [(a, b) for a in images for b in images if a is not b]
    assert any(is_near(np.asarray(a), np.asarray(b)) for a, b in pairs)
    assert not any(is_found(a, b) for a, b in pairs)


def test_colour_counts():
    generator = np.random.default_rng(5)
    image = made_pictures.drawing(generator)
    other = Image.merge("RGB", [image.getchannel(c) for c in "BRG"])
    assert not pictures.same_picture(np.asarray(image), np.asarray(other))
    blank = [np.full((50, 50, 3), value, np.uint8) for value in (250, 247, 100)]
    assert pictures.same_picture(blank[0], blank[1])
    assert not pictures.same_picture(blank[0], blank[2])
