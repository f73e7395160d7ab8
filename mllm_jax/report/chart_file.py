"""A line chart as an SVG file of its own, with heading and legend, for documents and slides."""

from collections.abc import Sequence
from html import escape

from mllm_jax.report import html
from mllm_jax.report.charts import HEIGHT, WIDTH, Axes, Curve, css_class, line_chart

TOP, LINE, MARGIN = 30.0, 17.0, 10.0  # of the heading, of a line of the legend, around all
COLUMN = 34  # letters of a name that stands beside another one


def chart_file(heading: str, curves: Sequence[Curve], axes: Axes) -> str:
    """The text of the file; colours and fonts are those of the pages, light or dark.

    Args:
        heading: above the chart.
        curves, axes: as `charts.line_chart` takes them.
    """
    names = [curve.title or curve.name for curve in curves]
    columns = 2 if max(map(len, names)) <= COLUMN else 1
    legend = "".join(_entry(n, name, columns) for n, name in enumerate(names))
    height = TOP + HEIGHT + LINE * -(-len(names) // columns) + MARGIN
    chart = line_chart(curves, axes).replace(
        "<svg ", f'<svg x="0" y="{TOP:g}" width="{WIDTH:g}" height="{HEIGHT:g}" ', 1
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + MARGIN:g} {height:g}" '
        f'role="img" font-family="system-ui, sans-serif">'
        f"<title>{escape(heading)}</title><style>{html.sheet('charts.css')}</style>"
        f'<rect width="100%" height="100%" style="fill:var(--card)"/>'
        f'<text x="{MARGIN:g}" y="19" style="font-size:13px;font-weight:600;fill:var(--ink)">'
        f"{escape(heading)}</text>{chart}{legend}</svg>\n"
    )


def _entry(number: int, name: str, columns: int) -> str:
    """A line of a curve's colour, and its name."""
    x = MARGIN + number % columns * (WIDTH / columns)
    y = TOP + HEIGHT + LINE * (number // columns) + 6
    css = css_class(number)
    return (
        f'<polyline class="curve {css}" points="{x:.1f},{y:.1f} {x + 22:.1f},{y:.1f}"/>'
        f'<text x="{x + 28:.1f}" y="{y + 4:.1f}">{escape(name)}</text>'
    )
