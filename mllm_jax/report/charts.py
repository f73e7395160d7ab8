"""Line charts as inline SVG: no script, no library, colours from the page's style sheet.

Every chart has ticks with numbers on both axes, a title on each, and a legend where it has several
curves. A curve may be noisy: its points are drawn faint, their running mean strong.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360.0, 250.0
# margins: title of the axis (tick labels come on top), names at the ends, air, ticks and title
LEFT, RIGHT, TOP, BOTTOM = 28.0, 36.0, 12.0, 40.0
LETTER = 6.6  # width of a digit of a tick label
BUCKETS = 240  # a curve keeps the lowest and the highest point of each; more only add weight
COLOURS = 6  # style classes c0 to c5; further curves repeat them with dashes
SHORT = 4  # letters of a name that fits at the end of a curve
LOG_FROM = 5.0  # largest over smallest value from which an "auto" axis is logarithmic


class Curve(NamedTuple):
    """One line of a chart."""

    name: str  # at its end where it is short, in the legend where there are several
    points: Points  # (x, y) in the order of x; not finite ones are left out
    noisy: bool = False  # draw the points faint and their running mean strong
    dots: bool = False  # mark every point: measured now and then, not at every step
    title: str = ""  # name in the legend; default: `name`
    bars: Sequence[tuple[float, float, float]] = ()  # (x, lowest, highest) around a point


class Axes(NamedTuple):
    """Titles and scale of a chart."""

    x: str
    y: str
    scale: Literal["auto", "log", "zero", "share"] = "auto"  # zero: linear from 0; share: in %


def figure(heading: str, curves: Sequence[Curve], axes: Axes) -> str:
    """A chart with its heading and, where it has several curves, a legend."""
    items = "".join(
        f'<li class="{css_class(n)}"><i></i>{escape(curve.title or curve.name)}</li>'
        for n, curve in enumerate(curves)
    )
    legend = f"<ul class=legend>{items}</ul>" if len(curves) > 1 else ""
    chart = line_chart(curves, axes)
    return f"<figure class=card><h4>{escape(heading)}</h4>{chart}{legend}</figure>"


def line_chart(curves: Sequence[Curve], axes: Axes) -> str:
    """Curves in one frame.

    Args:
        curves: the n-th has the style class c<n>.
        axes: titles and scale; a logarithmic one leaves out values that are not positive.

    Returns:
        An <svg> element that takes the width of its container.
    """
    clean = [[p for p in curve.points if math.isfinite(p[1])] for curve in curves]
    values = [y for points in clean for _, y in points]
    values += [y for curve in curves for _, *ends in curve.bars for y in ends]
    log = _is_log(values, axes.scale)
    if log:
        clean = [[p for p in points if p[1] > 0] for points in clean]
        values = [y for y in values if y > 0]
    if not values:
        return "<p class=note>No values yet.</p>"
    low, high = _bounds(values, axes.scale, log)
    steps = [x for points in clean for x, _ in points]
    ticks = _log_ticks(low, high) if log else _linear_ticks(low, high)
    labels = _labels(ticks, axes.scale)
    left = LEFT + LETTER * max(map(len, labels), default=0)
    whole = all(float(x).is_integer() for x in steps)
    frame = _Frame(min(steps), max(steps), low, high, log, left, _right(curves), whole)
    parts = [*_y_axis(frame, ticks, labels), *_x_axis(frame), *_titles(frame, axes)]
    ends = []
    for n, (curve, points) in enumerate(zip(curves, clean, strict=True)):
        if not points:
            continue
        parts += _drawn(frame, curve, points, css_class(n))
        if len(curve.name) <= SHORT:
            last = smoothed(points)[-1] if curve.noisy else points[-1]
            ends.append((frame.place(*last)[1], n, curve.name))
    parts += _names(frame, ends)
    names = ", ".join(curve.title or curve.name for curve in curves)
    label = escape(f"{axes.y} over {axes.x}: {names}", quote=True)
    box = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A running mean over the neighbours on both sides, so that nothing lags.

    They are a thirtieth of the curve in all.
    """
    reach = len(points) // 60
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for i, (x, y) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)  # shorter towards the ends
        total = sums[i + near + 1] - sums[i - near]
        means.append((x, total / (2 * near + 1) if near else y))
    return means


def thinned(points: Points, buckets: int = BUCKETS) -> list[tuple[float, float]]:
    """At most two points of each bucket, the lowest and the highest, so that no spike is lost."""
    if len(points) <= 2 * buckets:
        return list(points)
    size = math.ceil(len(points) / buckets)
    chosen = {0, len(points) - 1}
    for start in range(0, len(points), size):
        bucket = range(start, min(start + size, len(points)))
        chosen |= {min(bucket, key=lambda i: points[i][1]), max(bucket, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(chosen)]


def number(value: float, largest: float) -> str:
    """A tick's label, in the unit of the axis's largest one: 0.05, 350, 1,200, 12k, 3M."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= max(unit, 1e4):
            return f"{value / unit:.4g}{suffix}" if value else "0"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


# ------------------------------------------------------------------------------------------ frame


class _Frame(NamedTuple):
    """Where values are in the drawing."""

    first: float
    last: float
    low: float
    high: float
    log: bool
    left: float  # margins
    right: float
    whole: bool  # whether ticks across are whole numbers, as steps are

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.first) / max(self.last - self.first, 1e-9)
        if self.log:
            up = math.log(y / self.low) / math.log(self.high / self.low)
        else:
            up = (y - self.low) / (self.high - self.low)
        height = HEIGHT - TOP - BOTTOM
        return self.left + across * (WIDTH - self.left - self.right), HEIGHT - BOTTOM - up * height


def css_class(n: int) -> str:
    """Style class of the n-th curve."""
    return f"c{n % COLOURS}" + (" dashed" if n // COLOURS % 2 else "")


def _right(curves: Sequence[Curve]) -> float:
    return RIGHT if any(len(curve.name) <= SHORT for curve in curves) else 14.0


def _is_log(values: Sequence[float], scale: str) -> bool:
    positive = [y for y in values if y > 0]
    if scale != "auto":
        return scale == "log"
    wide = bool(positive) and max(positive) >= LOG_FROM * min(positive)
    return wide and len(positive) == len(values)


def _bounds(values: Sequence[float], scale: str, log: bool) -> tuple[float, float]:
    """A little more than the values span; a logarithmic axis never less than a factor of two."""
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.15, high * 1.15
        middle = math.sqrt(low * high)
        return min(low, middle / math.sqrt(2)), max(high, middle * math.sqrt(2))
    if scale in ("zero", "share"):
        return min(0.0, low), (high * 1.08 if high > 0 else 1.0 if scale == "zero" else 0.05)
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (low - air if low < 0 else max(0.0, low - air)), high + air


# --------------------------------------------------------------------------------------- elements


def _drawn(frame: _Frame, curve: Curve, points: Points, css: str) -> Iterator[str]:
    if curve.noisy:
        yield f'<polyline class="raw {css}" points="{_path(frame, points)}"/>'
    line = smoothed(points) if curve.noisy else points
    yield f'<polyline class="curve {css}" points="{_path(frame, line)}"/>'
    for x, *ends in curve.bars:
        yield _bar(css, *(frame.place(x, y) for y in ends))
    if curve.dots or len(points) == 1:
        for x, y in thinned(points):
            across, down = frame.place(x, y)
            title = f"<title>{escape(curve.name)}, {x:,.10g}: {y:.4g}</title>"
            centre = f'cx="{across:.1f}" cy="{down:.1f}"'
            yield f'<circle class="{css}" {centre} r="2.6">{title}</circle>'


def _bar(css: str, low: tuple[float, float], high: tuple[float, float]) -> str:
    """A vertical line with an end on both sides."""
    (x, bottom), (_, top) = low, high
    ends = "".join(f"M{x - 3:.1f},{y:.1f}h6" for y in (bottom, top))
    return f'<path class="error {css}" d="M{x:.1f},{bottom:.1f}V{top:.1f}{ends}"/>'


def _path(frame: _Frame, points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.place(*p) for p in thinned(points)))


def _text(css: str, x: float, y: float, text: str, more: str = "") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _line(css: str, y: float, frame: _Frame) -> str:
    ends = f'x1="{frame.left:.1f}" x2="{WIDTH - frame.right:.1f}"'
    return f'<line class="{css}" {ends} y1="{y:.1f}" y2="{y:.1f}"/>'


def _y_axis(frame: _Frame, ticks: Sequence[float], labels: Sequence[str]) -> Iterator[str]:
    for tick, label in zip(ticks, labels, strict=True):
        y = frame.place(frame.first, tick)[1]
        yield _line("rule", y, frame)
        yield _text("tick", frame.left - 6, y + 4, label, 'text-anchor="end"')


def _labels(ticks: Sequence[float], scale: str) -> list[str]:
    if scale == "share":
        return [f"{100 * tick:.4g} %" for tick in ticks]
    largest = max(map(abs, ticks), default=0.0)
    if largest < 0.01:
        return [_scientific(tick) for tick in ticks]
    return [number(tick, largest) for tick in ticks]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(ticks) > 7:
        ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    while len(ticks) > 7:
        ticks = ticks[::2]
    return ticks if len(ticks) > 1 else _linear_ticks(low, high)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = _step((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    ticks = (n * step for n in range(first, first + 12))
    return [tick for tick in ticks if tick <= high * (1 + 1e-12) or tick == 0]


def _step(least: float) -> float:
    """The first of 1, 2, 5, 10, 20, ... (and 0.1, 0.2, ...) that is at least `least`."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(m * unit for m in (1, 2, 5, 10) if m * unit >= least * (1 - 1e-9))


def _x_axis(frame: _Frame) -> Iterator[str]:
    span = (frame.last - frame.first) or 1.0
    step = max(1.0 if frame.whole else 0.0, _step(span / 4.5))
    tick = math.ceil(frame.first / step) * step
    base = frame.high if frame.log else frame.low
    while tick <= frame.last + step * 1e-9:
        x = frame.place(tick, base)[0]
        label = number(tick, frame.last)
        yield _text("tick", x, HEIGHT - BOTTOM + 16, label, 'text-anchor="middle"')
        tick += step
    yield _line("axis", HEIGHT - BOTTOM, frame)


def _titles(frame: _Frame, axes: Axes) -> Iterator[str]:
    x, y = (frame.left + WIDTH - frame.right) / 2, (TOP + HEIGHT - BOTTOM) / 2
    yield _text("title", x, HEIGHT - 6.0, axes.x, 'text-anchor="middle"')
    turned = f'text-anchor="middle" transform="rotate(-90 11 {y})"'
    yield _text("title", 11.0, y, f"{axes.y} (log)" if frame.log else axes.y, turned)


def _names(frame: _Frame, ends: list[tuple[float, int, str]]) -> Iterator[str]:
    """Names at the curves' ends, pushed apart where they would overlap."""
    above = -math.inf
    for y, n, name in sorted(ends):
        above = max(y, above + 14)
        if above < HEIGHT - 8:
            yield _text(f"name {css_class(n)}", WIDTH - frame.right + 6, above + 4.0, name)
