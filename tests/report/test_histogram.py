"""Every example stands in one bin, and every bar inside the frame."""

import re

import numpy as np
import pytest

from mllm_jax.report import histogram


@pytest.mark.parametrize("length", [1, 7, 31, 96, 2048])
def test_every_example_is_in_its_bin(length: int):
    sizes = np.random.default_rng(length).integers(1, length + 1, 500)
    counts, edges = histogram.binned(sizes, length)
    assert (edges[0], edges[-1], len(edges)) == (0, length, len(counts) + 1)
    for n, count in enumerate(counts):
        assert count == ((sizes > edges[n]) & (sizes <= edges[n + 1])).sum()
    assert sum(counts) == 500


def test_bars_keep_inside_their_frame():
    sizes = np.array([1] * 100_000 + [50, 96, 96], np.int64)
    svg = histogram.length_histogram(sizes, 96, 7)
    bars = re.findall(
        r'<rect class="c1" x="([\d.]+)" y="([\d.]+)" height="([\d.]+)" width="([\d.]+)"', svg
    )
    assert len(bars) == 3
    for x, y, height, width in (map(float, bar) for bar in bars):
        assert histogram.LEFT <= x <= x + width <= histogram.WIDTH - histogram.RIGHT
        assert y >= histogram.TOP
        assert y + height == pytest.approx(histogram.HEIGHT - histogram.BOTTOM)
        assert height >= 1, "a single example is seen"
    assert "<title>94 to 96 tokens: 2 examples</title>" in svg
    assert "<title>49 to 51 tokens: 1 example</title>" in svg
    assert 'aria-label="100,003 examples, 1 tokens in the middle"' in svg
