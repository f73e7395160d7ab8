"""Scatter plots as inline SVG: groups of points with their means, in the style sheet's colours."""

from collections.abc import Mapping
from html import escape

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT, MARGIN = 640.0, 420.0, 28.0
COLOURS = 6  # style classes c0 to c5; further groups repeat them as rings
MOST = 600  # points of a group that are drawn, evenly spaced among all


def scatter(
    heading: str, groups: Mapping[str, Float[np.ndarray, "_ 2"]], axes: tuple[str, str]
) -> str:
    """A <figure> with a dot for every point, a large one for every group's mean, and a legend.

    Args:
        heading: above it.
        groups: points by name; both axes have one scale, so that distances are what they look like.
        axes: what they are, for the line below.
    """
    every = np.concatenate(list(groups.values()))
    low, high = every.min(0), every.max(0)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    scale = float((room / np.maximum(high - low, 1e-12)).min())
    offset = (np.array([WIDTH, HEIGHT]) - scale * (high - low)) / 2
    dots, means, legend = [], [], []
    for number, (name, points) in enumerate(groups.items()):
        css = f"c{number % COLOURS}" + (" ring" if number // COLOURS % 2 else "")
        chosen = points[:: max(1, -(-len(points) // MOST))]
        placed = offset + scale * (chosen - low)
        placed[:, 1] = HEIGHT - placed[:, 1]
        circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in placed)
        dots.append(f'<g class="{css}" opacity=".45">{circles}</g>')
        x, y = offset + scale * (points.mean(0) - low)
        title = f"<title>{escape(name)}: mean of {len(points):,}</title>"
        means.append(
            f'<circle class="{css} mean" cx="{x:.1f}" cy="{HEIGHT - y:.1f}" r="7">{title}</circle>'
        )
        legend.append(f'<li class="{css}"><i></i>{escape(name)}</li>')
    label = escape(f"{heading}: {', '.join(groups)}", quote=True)
    box = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}"'
    chart = f"<svg {box}>{''.join(dots)}{''.join(means)}</svg>"
    return (
        f"<figure class=card><h4>{escape(heading)}</h4>{chart}<ul class=legend>{''.join(legend)}"
        f"</ul><p class='note under'>Across: {escape(axes[0])}; up: {escape(axes[1])}.</p></figure>"
    )
