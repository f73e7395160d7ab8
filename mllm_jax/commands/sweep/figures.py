"""Figures of a sweep: a metric against the points of an axis, a line per language and axis.

    figure: {x: share, line: backbone, over: seed}   ->   exact_match.svg, loss.svg, ...

A point is the mean over the runs of the axis `over`, its bar from the lowest to the highest of
them. Points of further axes, and variants, have figures of their own.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from mllm_jax.commands.sweep.runs import number
from mllm_jax.commands.sweep.scores import METRICS, Metric, Scored
from mllm_jax.common.folders import write_whole
from mllm_jax.config.sweep import FigureConfig, SweepConfig
from mllm_jax.report.chart_file import chart_file
from mllm_jax.report.charts import Axes, Curve
from mllm_jax.report.html import language_name

Panel = tuple[tuple[str, str], ...]  # (axis, point) of the axes that are not in the figure


class Chart(NamedTuple):
    """A figure before it is drawn."""

    file: str
    heading: str
    curves: Sequence[Curve]
    axes: Axes


def write_figures(rows: Sequence[Scored], sweep: SweepConfig, out: Path) -> list[Chart]:
    """Writes an SVG file for every metric that is known; returns what they show."""
    if sweep.figure is None:
        return []
    charts = [
        chart
        for panel in _panels(rows, sweep.figure)
        for metric in METRICS
        if (chart := _chart(rows, sweep, panel, metric)).curves
    ]
    for chart in charts:
        write_whole(out / chart.file, chart_file(chart.heading, chart.curves, chart.axes))
    return charts


def _panels(rows: Sequence[Scored], figure: FigureConfig) -> list[Panel]:
    return list(dict.fromkeys(_panel(one, figure) for one in rows if one.row.run.points))


def _panel(one: Scored, figure: FigureConfig) -> Panel:
    inside = (figure.x, figure.line, figure.over)
    rest = [(axis, point) for axis, point in one.row.run.points.items() if axis not in inside]
    return (*rest, *([("variant", one.row.variant)] if one.row.variant else []))


def _chart(rows: Sequence[Scored], sweep: SweepConfig, panel: Panel, metric: Metric) -> Chart:
    figure = sweep.figure
    assert figure is not None
    mine = [one for one in rows if one.row.run.points and _panel(one, figure) == panel]
    languages = list(dict.fromkeys(name for one in mine for name in one.languages))
    lines = list(sweep.grid[figure.line]) if figure.line else [""]
    curves = [
        curve
        for line in lines
        for language in languages
        if (curve := _curve(_of_line(mine, figure, line), figure, line, language, metric)).points
    ]
    label = ", ".join(f"{axis} {point}" for axis, point in panel)
    file = "-".join([metric.name, *(re.sub(r"[^\w.+-]", "_", point) for _, point in panel)])
    scale = "share" if metric.share else "auto"
    heading = metric.title[0].upper() + metric.title[1:] + (f"; {label}" if label else "")
    return Chart(f"{file}.svg", heading, curves, Axes(figure.x, metric.column, scale))


def _of_line(rows: Sequence[Scored], figure: FigureConfig, line: str) -> Iterator[Scored]:
    for one in rows:
        if not figure.line or one.row.run.points[figure.line] == line:
            yield one


def _curve(
    rows: Iterator[Scored], figure: FigureConfig, line: str, language: str, metric: Metric
) -> Curve:
    """The means of a line in a language; bars where a mean is of several runs."""
    values: dict[float, list[float]] = {}
    for one in rows:
        scores = one.languages.get(language)
        x = number(one.row.run.points[figure.x])
        if x is not None and scores is not None and metric.name in scores.values:
            value = scores.values[metric.name] / (100 if metric.share else 1)
            values.setdefault(x, []).append(value)
    points = sorted((x, fmean(of)) for x, of in values.items())
    bars = sorted((x, min(of), max(of)) for x, of in values.items() if len(of) > 1)
    name = language_name(language) + (f", {figure.line} {line}" if figure.line else "")
    return Curve(name, points, dots=True, bars=bars)


def bars_note(sweep: SweepConfig) -> str:
    """What points and bars of the figures are."""
    if sweep.figure is None or sweep.figure.over is None:
        return "A point is a run."
    return (
        f"A point is the mean over the runs of {sweep.figure.over}, its bar from the lowest to the "
        "highest of them."
    )
