"""Draws the mean score of every task and language with its 95 % interval, as one SVG."""

from collections.abc import Sequence
from html import escape

from mllm_jax.evaluation.results.tables import Mean, Result

WIDTH, ROW, TOP, BOTTOM, RIGHT = 430.0, 24.0, 8.0, 36.0, 100.0
LETTER = 6.6  # width of a letter of a label
LONGEST = 24  # letters of a label
TICKS = (0.0, 25.0, 50.0, 75.0, 100.0)
# the page's colours, or plain ones where the file is looked at by itself
_INK = "var(--c0,#1f5fbf)"
_SOFT = "var(--soft,#605c55)"
_LINE = "var(--line,#d8d4cb)"


def svg(results: Sequence[Result]) -> str:
    """The figure; "" where no task has a mean score."""
    rows = [(one, one.mean) for one in results if one.mean is not None]
    if not rows:
        return ""
    labels = [_cut(f"{one.task.name}, {one.language}") for one, _ in rows]
    left = 12 + LETTER * max(map(len, labels))
    height = TOP + ROW * len(rows) + BOTTOM
    base = height - BOTTOM + 4

    def x(share: float) -> float:
        return left + (WIDTH - RIGHT - left) * share / 100

    parts = [_line(x(tick), TOP, x(tick), base, _LINE, 1.0) for tick in TICKS]
    parts += [_text(x(tick), base + 14, f"{tick:g}", "middle") for tick in TICKS]
    parts.append(_text(x(50.0), height - 2, "mean score in percent, 95 % interval", "middle"))
    for number, (label, (_, mean)) in enumerate(zip(labels, rows, strict=True)):
        parts.append(_row(TOP + ROW * (number + 0.5), left, label, mean, x(mean.low), x(mean.high)))
        parts.append(_dot(x(mean.mean), TOP + ROW * (number + 0.5)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="intervals" role="img" '
        f'viewBox="0 0 {WIDTH:g} {height:g}" font-family="system-ui, sans-serif" font-size="11.5">'
        f"<title>Mean scores with 95 % intervals</title>{''.join(parts)}</svg>\n"
    )


def _row(y: float, left: float, label: str, mean: Mean, low: float, high: float) -> str:
    value = f"{mean.mean:.1f} [{mean.low:.1f}, {mean.high:.1f}]"
    ends = "".join(_line(x, y - 4, x, y + 4, _INK, 1.5) for x in (low, high))
    return (
        _text(left - 8, y + 4, label, "end")
        + _line(low, y, high, y, _INK, 1.5)
        + ends
        + _text(WIDTH - RIGHT + 8, y + 4, value, "start", "11")
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:{colour};stroke-width:{width:g}"/>'
    )


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{_INK}"/>'


def _text(x: float, y: float, text: str, anchor: str, size: str = "11.5") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="fill:{_SOFT};font-size:{size}px">{escape(text)}</text>'
    )
