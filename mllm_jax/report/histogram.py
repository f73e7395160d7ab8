"""Histograms as inline SVG, beside the curves of `charts`: how long a stream's examples are."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from mllm_jax.report import html

WIDTH, HEIGHT = 360.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 12.0, 12.0, 8.0, 40.0  # margins: half a tick label; ticks and title
BINS = 32


def length_histogram(sizes: Int64[np.ndarray, "n"], length: int, colour: int) -> str:
    """Bars over 0 to `length` tokens, the highest as high as the chart.

    Args:
        sizes: tokens of every example, from 1 to `length`.
        length: tokens of a row.
        colour: number of the style class.

    Returns:
        An <svg> element that takes the width of its place.
    """
    counts, edges = binned(sizes, length)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    bars = []
    for n, count in enumerate(counts):
        if count == 0:
            continue
        high = max(1.0, height * count / max(counts))  # a single example is still to be seen
        x, y = LEFT + n * width / len(counts), HEIGHT - BOTTOM - high
        label = f"{edges[n] + 1} to {edges[n + 1]} tokens: {html.counted(count, 'example')}"
        bars.append(
            f'<rect class="c{colour % 6}" x="{x:.1f}" y="{y:.1f}" height="{high:.1f}" '
            f'width="{max(1.0, width / len(counts) - 1):.1f}"><title>{label}</title></rect>'
        )
    middle = int(np.median(sizes))
    label = f"{html.counted(len(sizes), 'example')}, {middle} tokens in the middle"
    frame = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}"'
    return f"<svg class=histogram {frame}>{''.join(bars)}{''.join(_axis(length))}</svg>"


def binned(sizes: Int64[np.ndarray, "n"], length: int) -> tuple[list[int], list[int]]:
    """Counts, and the bins' edges: bin n holds sizes above edge n up to edge n + 1."""
    edges = np.unique(np.linspace(0, length, BINS + 1).astype(int))
    places = np.searchsorted(edges, sizes) - 1
    return np.bincount(places, minlength=len(edges) - 1).tolist(), edges.tolist()


def _axis(length: int) -> Iterator[str]:
    y = HEIGHT - BOTTOM
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        label = f"{round(share * length):,}"
        yield f'<text class="tick" x="{x}" y="{y + 16}" text-anchor="{anchor}">{label}</text>'
    title = f'<text class="title" x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
    yield f"{title}tokens of an example</text>"
