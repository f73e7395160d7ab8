"""Recognises one picture in another: resized, encoded again, or cropped by up to 3 % of each edge.

Three steps, each on what the one before leaves:

    difference hash     64 bits; at most 6 differ for some pair of windows    (hash_search)
    thumbnail           8 x 8 RGB of the whole pictures
    aligned residual    both pictures at 64 x 64, the windows' edges moved until they fit best

A crop of 3 % moves a hash by 6 bits on average, so one hash a picture finds three quarters.
Evaluation pictures are few: each gets the hashes of 81 windows, 0, 1.5 or 3 % off each edge.
Training pictures are many, and get two: whole, and without 3 % of each edge. If the training
picture is a crop, it is near one of the 81. If the evaluation picture is the crop, it holds the
middle of the training picture, which is near one of its own 81 windows.
"""

import itertools

import numpy as np
from jaxtyping import Float32, UInt8, UInt64
from PIL import Image

from mllm_jax.data.images.decode import fingerprint

DISTANCE = 6  # differing bits of 64, at most
CROP = 0.03  # of each edge
EDGES = (0.0, CROP / 2, CROP)
Window = tuple[float, float, float, float]  # left, top, right, bottom in 0..1
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
MIDDLE: Window = (CROP, CROP, 1 - CROP, 1 - CROP)
DATA_WINDOWS = (WHOLE, MIDDLE)
TASK_WINDOWS = tuple(
    (left, top, 1 - right, 1 - bottom)
    for left, top, right, bottom in itertools.product(EDGES, repeat=4)
)
THUMBNAIL = 8
ROUGH = 0.5  # residual of thumbnails above which two pictures are not looked at
SAME = 0.05  # residual of aligned pictures up to which they are one; measured: docs
ROUGH_MEAN = 24.0  # largest difference of the mean of a channel, of 255, of thumbnails
MEAN = 6.0  # and of aligned pictures
_LEVELS = ((16, 4), (32, 2), (64, 2))  # side of the pictures compared, steps of the alignment
_HOPELESS = 0.35  # residual after which finer levels are not tried
_HASHED = 128  # pixels of the shorter side: larger pictures are reduced before they are hashed
_LARGE = 256  # pixels: larger pictures are reduced before they are aligned
_BLANK = 1.0  # variance added to that of the pictures, so that noise on blank ones is nothing
_FURTHEST = 2 * CROP + 0.01  # how far an edge may move from the picture's
_STEP = 0.02  # of one step

Pixels = UInt8[np.ndarray, "_ _ 3"]  # two of them may have two sizes


def hashes(pixels: Pixels, windows: tuple[Window, ...]) -> UInt64[np.ndarray, "w"]:
    """The difference hash of each window of a picture, see `decode.fingerprint`.

    Large pictures are reduced by a whole factor first, which moves a bit now and then.
    """
    grey = Image.fromarray(pixels).convert("L")
    factor = min(grey.size) // _HASHED
    small = np.asarray(grey.reduce(factor) if factor > 1 else grey)
    return np.array([fingerprint(small, window) for window in windows], np.uint64)


def thumbnail(pixels: Pixels) -> UInt8[np.ndarray, "8 8 3"]:
    """The picture at 8 x 8."""
    return np.asarray(Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def look_alike(
    first: UInt8[np.ndarray, "n 8 8 3"], second: UInt8[np.ndarray, "n 8 8 3"]
) -> np.ndarray:
    """Which pairs of thumbnails are near enough to look at the pictures."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    means = [x.mean((1, 2), keepdims=True) for x in (a, b)]
    a, b = a - means[0], b - means[1]
    scale = (a**2).mean((1, 2, 3)) + (b**2).mean((1, 2, 3)) + _BLANK
    near = np.abs(means[0] - means[1]).max((1, 2, 3)) <= ROUGH_MEAN
    return near & (((a - b) ** 2).mean((1, 2, 3)) <= ROUGH * scale)


def same_picture(data: Pixels, task: Pixels) -> bool:
    """Whether two pictures are one, up to size, encoding, and 3 % of each edge.

    The windows that fit best are searched by least squares (Lucas and Kanade, 1981), coarse to
    fine. The residual is the mean square of what remains over the sum of both variances: 0 for the
    same pixels, about 1 for unrelated pictures.
    """
    pictures = [_reduced(pixels) for pixels in (data, task)]
    return any(_fits(pictures[0], pictures[1], window) for window in DATA_WINDOWS)


def _fits(data: Image.Image, task: Image.Image, window: Window) -> bool:
    """Whether the window of one picture is some window of the other."""
    edges = np.array([CROP / 2, CROP / 2, 1 - CROP / 2, 1 - CROP / 2])
    residual = np.inf
    for side, steps in _LEVELS:
        fixed, mean = _centred(data, np.array(window), side)
        residual, best = np.inf, edges
        for step in range(steps + 1):
            moving, other = _centred(task, edges, side)
            scale = (fixed**2).mean() + (moving**2).mean() + _BLANK
            rest = ((fixed - moving) ** 2).mean() / scale
            if rest < residual:
                residual, best = rest, edges
                if np.abs(mean - other).max() > MEAN:
                    return False
            if step < steps:
                edges = _moved(edges, fixed, moving)
        if residual > _HOPELESS:
            return False
        edges = best
    return bool(residual <= SAME)


def _reduced(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    factor = min(image.size) // _LARGE
    return image.reduce(factor) if factor > 1 else image


def _centred(
    image: Image.Image, edges: Float32[np.ndarray, "4"] | np.ndarray, side: int
) -> tuple[Float32[np.ndarray, "side side 3"], Float32[np.ndarray, "3"]]:
    """(a window of a picture without its mean colour, the mean colour)."""
    box = tuple((edges * np.tile(image.size, 2)).tolist())
    small = image.resize((side, side), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    values = np.asarray(small, np.float32)
    mean = values.mean((0, 1))
    return values - mean, mean


def _moved(edges: np.ndarray, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The edges of the moving window after one step: a shift and a stretch along each axis."""
    side = len(fixed)
    down, across = np.gradient((fixed + moving) / 2, axis=(0, 1))
    place = (np.arange(side) + 0.5) / side - 0.5
    columns = [across, across * place[None, :, None], down, down * place[:, None, None]]
    slopes = np.stack(columns, -1).reshape(-1, 4)
    normal = slopes.T @ slopes + 1e-2 * np.eye(4)  # a blank picture has no slopes
    x, wider, y, higher = np.linalg.solve(normal, slopes.T @ (fixed - moving).ravel()) / side
    width, height = edges[2:] - edges[:2]
    step = np.array(
        [
            (x - wider / 2) * width,
            (y - higher / 2) * height,
            (x + wider / 2) * width,
            (y + higher / 2) * height,
        ]
    )
    moved = edges + np.clip(step, -_STEP, _STEP)
    return np.concatenate([np.clip(moved[:2], 0, _FURTHEST), np.clip(moved[2:], 1 - _FURTHEST, 1)])
