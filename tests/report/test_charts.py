"""Charts: ticks, scales, and curves that keep inside their frame."""

import math
import re
from xml.etree import ElementTree

import pytest

from mllm_jax.report import charts
from mllm_jax.report.chart_file import chart_file
from mllm_jax.report.charts import Axes, Curve

AXES = Axes("step", "loss")


def points(svg: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in re.findall(r'points="([^"]+)"', svg)
        for x, y in (point.split(",") for point in line.split())
    ]


def ticks(svg: str) -> list[str]:
    return re.findall(r'class="tick"[^>]*text-anchor="end">([^<]+)<', svg)


def test_smoothing_has_no_lag_and_keeps_constants():
    flat = charts.smoothed([(float(x), 2.0) for x in range(100)])
    assert all(abs(y - 2) < 1e-9 for _, y in flat)
    assert charts.smoothed([(0.0, 5.0), (1.0, 1.0)]) == [
        (0.0, 5.0),
        (1.0, 1.0),
    ]  # too short to smooth
    falling = [(float(x), 100.0 - x) for x in range(100)]
    assert charts.smoothed(falling) == falling
    jumps = charts.smoothed([(float(x), float(x % 2)) for x in range(300)])
    assert all(0.4 < y < 0.6 for _, y in jumps[10:-10])


def test_a_chart_keeps_inside_its_frame():
    curves = [
        Curve("eu", [(1.0, 6.5), (2.0, 0.01)], noisy=True),
        Curve("en", [(1.0, 6.5), (2.0, 0.0101)], noisy=True),
        Curve("it", []),
    ]
    svg = charts.line_chart(curves, AXES)
    drawn = points(svg)
    assert len(drawn) == 8
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for x, _ in drawn)
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for _, y in drawn)
    names = [float(y) for y in re.findall(r'class="name c\d" x="[\d.]+" y="([\d.]+)"', svg)]
    assert abs(names[0] - names[1]) >= 14, "names at the ends do not overlap"


@pytest.mark.parametrize("curve", [[], [(1.0, math.nan)], [(1.0, math.inf)]])
def test_a_chart_without_values_says_so(curve: list):
    svg = charts.line_chart([Curve("eu", curve)], AXES)
    assert svg == "<p class=note>No values yet.</p>"


@pytest.mark.parametrize(
    ("values", "scale", "expected", "log"),
    [
        ([1.0, 2.0], "auto", ["1", "1.5", "2"], False),
        ([0.011, 9.0], "auto", ["0.01", "0.1", "1", "10"], True),
        ([3e-5, 2e-5], "zero", ["0", "1e-5", "2e-5", "3e-5"], False),
        ([0.0, 0.1], "share", ["0 %", "5 %", "10 %"], False),
        ([9000.0, 12000.0], "zero", ["0", "5k", "10k"], False),
        ([0.0, 0.0], "share", ["0 %", "1 %", "2 %", "3 %", "4 %", "5 %"], False),
        ([-1.0, 1.0], "auto", ["-1", "-0.5", "0", "0.5", "1"], False),
    ],
)
def test_ticks_are_round_and_fit_the_values(values, scale, expected, log: bool):
    axes = AXES._replace(scale=scale)
    svg = charts.line_chart([Curve("loss", [(float(n), y) for n, y in enumerate(values)])], axes)
    assert ticks(svg) == expected
    assert ("loss (log)" in svg) == log


@pytest.mark.parametrize("value", [1e-30, 1e-3, 1.0, 1234.5, 1e12])
@pytest.mark.parametrize("scale", ["auto", "log", "zero", "share"])
def test_any_value_alone_has_a_chart(value: float, scale):
    svg = charts.line_chart([Curve("a", [(1.0, value)])], AXES._replace(scale=scale))
    assert svg.startswith("<svg") and "nan" not in svg and "<circle" in svg


def test_thinning_keeps_spikes_and_ends():
    curve = [(float(x), 1.0) for x in range(10_000)]
    curve[7_777] = (7_777.0, 9.0)
    curve[2_222] = (2_222.0, -3.0)
    thin = charts.thinned(curve)
    assert len(thin) <= 2 * charts.BUCKETS + 2
    assert {curve[0], curve[-1], curve[7_777], curve[2_222]} <= set(thin)
    assert thin == sorted(thin)


def test_more_curves_than_colours_are_told_apart():
    curves = [Curve(f"{n}", [(0.0, 1.0), (1.0, 2.0 + n)]) for n in range(8)]
    figure = charts.figure("<Losses>", curves, AXES)
    assert 'class="curve c1"' in figure and 'class="curve c1 dashed"' in figure
    assert figure.count("<li ") == 8 and "&lt;Losses&gt;" in figure
    assert "<li " not in charts.figure("One", curves[:1], AXES), "a legend of one says nothing"


@pytest.mark.parametrize(
    ("value", "largest", "text"),
    [
        (0.0, 1e6, "0"),
        (0.05, 0.1, "0.05"),
        (350.0, 400.0, "350"),
        (1234.0, 2e3, "1,234"),
        (5e3, 1.2e4, "5k"),
        (1.25e6, 2e6, "1.25M"),
        (2e8, 1e9, "0.2G"),
    ],
)
def test_number(value: float, largest: float, text: str):
    assert charts.number(value, largest) == text


def test_bars_are_inside_the_frame_and_count_for_its_scale():
    curve = Curve("eu", [(0.0, 0.5), (100.0, 0.6)], dots=True, bars=[(100.0, 0.1, 0.9)])
    svg = charts.line_chart([curve], Axes("share", "match", "share"))
    ((x, bottom, top),) = re.findall(r'class="error c0" d="M([\d.]+),([\d.]+)V([\d.]+)M', svg)
    assert float(x) == points(svg)[1][0]
    assert charts.TOP < float(top) < points(svg)[1][1] < float(bottom)
    assert ticks(svg)[-1] == "80 %", "0.9 is on the axis"


def test_values_across_may_be_fractions():
    curve = Curve("eu", [(0.4, 1.0), (0.7, 2.0), (1.0, 3.0), (1.5, 4.0)])
    svg = charts.line_chart([curve], AXES)
    assert re.findall(r'text-anchor="middle">([\d.]+)<', svg) == ["0.5", "1", "1.5"]
    steps = charts.line_chart([Curve("eu", [(1.0, 1.0), (3.0, 2.0)])], AXES)
    assert re.findall(r'text-anchor="middle">([\d.]+)<', steps) == ["1", "2", "3"]


def test_a_chart_is_a_file_of_its_own():
    curves = [Curve(f"<{name}>", [(0.0, 1.0), (1.0, 2.0)]) for name in ("eu", "en", "it")]
    text = chart_file("Loss & more", curves, AXES)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "--c0" in text
    written = [of.text for of in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Loss & more", "<eu>", "<en>", "<it>", "step"} <= set(written)
    height = float(root.attrib["viewBox"].split()[-1])
    assert all(float(of.attrib["y"]) < height for of in root.iter() if "y" in of.attrib)
