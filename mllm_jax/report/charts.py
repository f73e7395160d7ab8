"""Loss curves as inline SVG: no script, no library, colours from the page's style sheet."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]

WIDTH, HEIGHT = 360.0, 250.0
# margins: tick labels, names at the ends of the curves, air, title of the axis
LEFT, RIGHT, TOP, BOTTOM = 44.0, 34.0, 12.0, 40.0
MOST = 240  # points of a drawn curve; more would only make the page heavy


def line_chart(curves: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """Curves over a logarithmic y axis.

    Each one is faint as it is, strong when smoothed, its name at its end.

    Args:
        curves: name -> points (x, y > 0) in the order of x; the n-th has the style classes c<n>.
        x_label, y_label: titles of the axes.

    Returns:
        An <svg> element that takes the width of its place.
    """
    points = [p for curve in curves.values() for p in curve if p[1] > 0]
    if not points:
        return "<p>No steps yet.</p>"
    low, high = _bounds([y for _, y in points])
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / max(last - first, 1e-9)
        up = math.log(y / low) / math.log(high / low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        *_y_axis(low, high, place, first),
        *_x_axis(first, last, place, low),
        *_titles(x_label, y_label),
    ]
    ends = []
    for n, (name, curve) in enumerate(curves.items()):
        curve = [p for p in curve if p[1] > 0]
        if not curve:
            continue
        smooth = smoothed(curve)
        parts.append(f'<polyline class="raw c{n}" points="{_path(curve, place)}"/>')
        parts.append(f'<polyline class="curve c{n}" points="{_path(smooth, place)}"/>')
        ends.append((place(*smooth[-1])[1], n, name))
    parts += _names(ends)
    label = escape(f"{y_label} over {x_label}: {', '.join(curves)}", quote=True)
    frame = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def smoothed(curve: Points) -> list[tuple[float, float]]:
    """A running mean over the neighbours on both sides, so that nothing lags.

    They are a thirtieth of the curve in all.
    """
    reach = len(curve) // 60
    points = []
    for i, (x, _) in enumerate(curve):
        near = min(reach, i, len(curve) - 1 - i)  # shorter towards the ends
        window = [y for _, y in curve[i - near : i + near + 1]]
        points.append((x, sum(window) / len(window)))
    return points


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values span, never less than a factor of two."""
    low, high = min(values) / 1.15, max(values) * 1.15
    middle = math.sqrt(low * high)
    return min(low, middle / math.sqrt(2)), max(high, middle * math.sqrt(2))


def _path(curve: Points, place: Place) -> str:
    every = max(1, math.ceil(len(curve) / MOST))
    kept = [*curve[:-1:every], curve[-1]]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in kept))


def _text(css: str, x: float, y: float, words: str, more: str = "") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def _line(css: str, y: float) -> str:
    return f'<line class="{css}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _y_axis(low: float, high: float, place: Place, first: float) -> Iterator[str]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    while len(ticks) > 6:
        ticks = ticks[-1::-2][::-1]
    for tick in ticks:
        y = place(first, tick)[1]
        yield _line("rule", y)
        yield _text("tick", LEFT - 6, y + 4, f"{tick:g}", 'text-anchor="end"')


def _x_axis(first: float, last: float, place: Place, low: float) -> Iterator[str]:
    span = max(last - first, 1.0)
    unit = 10.0 ** max(0, math.floor(math.log10(span / 3)))  # whole steps
    step = next(m * unit for m in (1, 2, 5, 10) if span / (m * unit) <= 4.5)
    tick = math.ceil(first / step) * step
    while tick <= last:
        x = place(tick, low)[0]
        yield _text("tick", x, HEIGHT - BOTTOM + 16, f"{tick:,g}", 'text-anchor="middle"')
        tick += step
    yield _line("axis", HEIGHT - BOTTOM)


def _titles(x_label: str, y_label: str) -> Iterator[str]:
    x, y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    yield _text("title", x, HEIGHT - 6.0, x_label, 'text-anchor="middle"')
    turned = f'text-anchor="middle" transform="rotate(-90 11 {y})"'
    yield _text("title", 11.0, y, y_label, turned)


def _names(ends: list[tuple[float, int, str]]) -> Iterator[str]:
    """Names at the curves' ends, pushed apart where they would overlap."""
    above = -math.inf
    for y, n, name in sorted(ends):
        above = max(y, above + 14)
        yield _text(f"name c{n}", WIDTH - RIGHT + 6, above + 4.0, name)
