"""Scans are split by scan, pictures show what they say, and the same seed draws the same files."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from mllm_jax.digits import pictures


def test_no_scan_is_in_both_halves():
    train, test = pictures.split_scans(0.2)
    assert len(train.digits) + len(test.digits) == 1797
    assert not {scan.tobytes() for scan in train.pixels} & {scan.tobytes() for scan in test.pixels}
    share = np.bincount(test.digits) / np.bincount(np.concatenate([train.digits, test.digits]))
    assert np.all(np.abs(share - 0.2) < 0.01), "the split is even over the digits"


def test_a_picture_shows_its_two_scans(tmp_path: Path):
    _, test = pictures.split_scans()
    for picture in pictures.draw_pictures(test, 100, tmp_path, "test", vary=False):
        assert [test.digits[picture.tens], test.digits[picture.ones]] == list(
            divmod(picture.number, 10)
        )
        with Image.open(tmp_path / picture.file) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")
            canvas = np.asarray(image.convert("L"))
        for left, scan in ((0, picture.tens), (16, picture.ones)):
            small = canvas[8:24, left : left + 16].reshape(8, 2, 8, 2).mean((1, 3))
            # halved again the enlarged scan is the scan, softened by the interpolation
            assert np.corrcoef(small.ravel(), test.pixels[scan].ravel())[0, 1] > 0.9
        assert np.all(canvas[:8] == 255)
        assert np.all(canvas[24:] == 255)


def test_variation_moves_a_scan_a_little():
    train, _ = pictures.split_scans()
    still = pictures.draw(train.pixels[3], train.pixels[4]).astype(float)
    rng = np.random.default_rng(0)
    likeness = [
        np.corrcoef(pictures.draw(train.pixels[3], train.pixels[4], rng).ravel(), still.ravel())[
            0, 1
        ]
        for _ in range(50)
    ]
    assert min(likeness) > 0.6
    assert max(likeness) < 0.999


def test_every_number_equally_often_and_every_scan_in_turn(tmp_path: Path):
    train, _ = pictures.split_scans()
    made = pictures.draw_pictures(train, 1000, tmp_path, "train", vary=True)
    assert set(Counter(p.number for p in made).values()) == {10}
    used = Counter([p.tens for p in made] + [p.ones for p in made])
    assert len(used) == len(train.digits)
    assert max(used.values()) <= 2


def test_the_same_seed_draws_the_same_files(tmp_path: Path):
    train, _ = pictures.split_scans()
    for folder in ("a", "b"):
        pictures.draw_pictures(train, 30, tmp_path / folder, "train", vary=True, seed=5)
    pictures.draw_pictures(train, 30, tmp_path / "c", "train", vary=True, seed=6)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "abc")
    assert a == b
    assert a != c
