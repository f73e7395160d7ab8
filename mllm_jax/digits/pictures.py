"""Scans of handwritten digits -> pictures of two-digit numbers, PNG files on disk.

scikit-learn carries 1,797 real scans of 8 x 8 pixels (the test part of the UCI "Optical Recognition
of Handwritten
Digits" data), so nothing is downloaded. A picture shows two of them side by side: tens and ones, 07
for seven.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 32  # pixels of a side, the vision tower's image_size: nothing is resampled later
SCAN = 16  # pixels of a scan in the picture, twice its own size


class Scans(NamedTuple):
    """Scans and the digits they show; dark ink on white paper."""

    pixels: UInt8[np.ndarray, "N 8 8"]
    digits: Int[np.ndarray, "N"]


class Picture(NamedTuple):
    """A picture on disk and what it shows."""

    file: str  # name inside the image folder
    number: int  # 0 to 99
    tens: int  # which scan is on the left; an index into the scans it was made from
    ones: int


def split_scans(test_share: float = 0.2, seed: int = 0) -> tuple[Scans, Scans]:
    """The scans, split for training and for testing digit by digit: no scan is in both.

    Args:
        test_share: share of each digit's scans that are held out.
        seed: of the shuffle before the cut.

    Returns:
        (training scans, test scans).
    """
    data: Any = load_digits()
    pixels = (
        (255 - data.images * (255 / 16)).round().astype(np.uint8)
    )  # the scans count ink from 0 to 16
    rng = np.random.default_rng(seed)
    train, test = [], []
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(data.target == digit))
        cut = round(test_share * len(scans))
        test.append(scans[:cut])
        train.append(scans[cut:])
    first, second = np.concatenate(train), np.concatenate(test)
    return Scans(pixels[first], data.target[first]), Scans(pixels[second], data.target[second])


def draw_pictures(
    scans: Scans, count: int, folder: Path, prefix: str, vary: bool, seed: int = 0
) -> list[Picture]:
    """Writes `count` pictures; every number 0-99 comes up equally often, every scan of a digit in
    turn.

    Args:
        scans: what the digits are taken from.
        count: number of pictures.
        folder: where the PNG files go; made when missing.
        prefix: of the file names, e.g. "train" gives train-00042.png.
        vary: turn, stretch and shift every scan a little (for training pictures; held-out scans
            stay as they are).
        seed: of the draw.

    Returns:
        The pictures in the order of their files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([rng.permutation(100) for _ in range(-(-count // 100))])[:count]
    turns = [_endless(np.flatnonzero(scans.digits == digit), rng) for digit in range(10)]
    pictures = []
    for i, number in enumerate(numbers.tolist()):
        tens, ones = next(turns[number // 10]), next(turns[number % 10])
        picture = Picture(f"{prefix}-{i:05d}.png", number, tens, ones)
        canvas = draw(scans.pixels[tens], scans.pixels[ones], rng if vary else None)
        Image.fromarray(canvas).convert("RGB").save(folder / picture.file, compress_level=1)
        pictures.append(picture)
    return pictures


def draw(
    tens: UInt8[np.ndarray, "8 8"],
    ones: UInt8[np.ndarray, "8 8"],
    rng: np.random.Generator | None = None,
) -> UInt8[np.ndarray, "height width"]:
    """Two scans side by side on a square white canvas, each varied a little when `rng` is given."""
    canvas = np.full((SIZE, SIZE), 255, np.uint8)
    top = (SIZE - SCAN) // 2
    for left, scan in ((0, tens), (SCAN, ones)):
        canvas[top : top + SCAN, left : left + SCAN] = _enlarge(scan, rng)
    return canvas


def _enlarge(
    scan: UInt8[np.ndarray, "8 8"], rng: np.random.Generator | None
) -> UInt8[np.ndarray, "height width"]:
    """A scan of 8 x 8 pixels at SCAN x SCAN, with a small random turn, stretch and shift when
    `rng` is given.
    """
    turn, stretch_x, stretch_y, shift_x, shift_y = (0, 1, 1, 0, 0)
    if rng is not None:
        turn = rng.uniform(-0.17, 0.17)  # radians: 10 degrees
        stretch_x, stretch_y = rng.uniform(0.9, 1.12, 2)
        shift_x, shift_y = rng.uniform(-0.75, 0.75, 2)  # pixels of the scan
    # PIL asks where in the scan an output pixel comes from: out -> scan, around both centres.
    scale = 8 / SCAN
    a, b = scale * np.cos(turn) / stretch_x, scale * np.sin(turn) / stretch_x
    d, e = -scale * np.sin(turn) / stretch_y, scale * np.cos(turn) / stretch_y
    c = 4 + shift_x - (a + b) * SCAN / 2
    f = 4 + shift_y - (d + e) * SCAN / 2
    image = Image.fromarray(scan).transform(
        (SCAN, SCAN),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
        fillcolor=255,
    )
    return np.asarray(image)


def _endless(items: Int[np.ndarray, "N"], rng: np.random.Generator) -> Iterator[int]:
    """Items in random order, each once before any comes again, for ever."""
    while True:
        yield from rng.permutation(items).tolist()
