"""Strips so long that their canvas, or what is cut off them, would fill the memory."""

import numpy as np
import pytest
from PIL import Image

from mllm_jax.data.images.decode import load_pixels
from tests.data.pictures import encoded, noise


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(
    "shape", [(400, 3), (401, 3), (3, 400), (3, 401), (401, 60), (60, 401), (402, 5), (5, 402)]
)
def test_strips_are_resized_by_a_shorter_way(fit, shape):
    data = encoded(noise(*shape), "PNG")
    exact = load_pixels(data, 24, fit).astype(int)
    short = load_pixels(data, 24, fit, max_pixels=shape[0] * shape[1])
    difference = np.abs(short - exact)
    # cropped alike; padded, an edge may lie a fraction of a pixel elsewhere
    assert difference.max() <= (1 if fit == "crop" else 64)
    assert difference.mean() < 1


def test_a_strip_as_long_as_the_limit_allows():
    data = encoded(Image.new("L", (20_000_000, 1), 7), "PNG", compress_level=1)
    assert (load_pixels(data, 336, "crop") == 7).all()
    pixels = load_pixels(data, 336, "pad")
    assert (pixels == 7).all(-1).sum() == 336  # one line of it
    assert (pixels == (122, 116, 104)).all(-1).sum() == 335 * 336
