"""The page, built from made-up views: what it says, that it loads nothing, and how it is shown."""

import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from mllm_jax.report.metrics_file import Metrics
from mllm_jax.report.page import report_page
from mllm_jax.report.views import Answer, Compared, Group, Module, Report, Scores, Share, Stage
from tests.support import browser

KINDS = {
    "number": "hirurogeita hamazazpi",
    "parity": "bakoitia",
    "sum": "hamalau",
    "larger": "berdinak dira",
}
HOSTILE = "<script>alert(1)</script> <b>&</b> \u202eabc"
LONG = "Donaudampfschifffahrtsgesellschaft" * 20


def metrics(start: float, end: float, steps: int, heldout: bool) -> Metrics:
    losses = [
        end + (start - end) * math.exp(-6 * step / steps) * (1 + 0.15 * math.sin(step * 7.3))
        for step in range(steps)
    ]
    curves = {
        "loss": losses,
        "loss/language/eu": losses,
        "learning_rate/all": [1e-3] * steps,
        "grad_norm": losses,
        "real_tokens_per_second": [9000.0 + step for step in range(steps)],
        "data_wait_share": [0.02] * steps,
        "padding_share": [0.1] * steps,
        "step_seconds": [0.1] * steps,
    }
    points = {key: [(n + 1.0, y) for n, y in enumerate(of)] for key, of in curves.items()}
    # a step may have no token of a language
    points["loss/language/en"] = [(x, 0.8 * y) for x, y in points["loss"] if x % 5]
    if heldout:
        for key in ("heldout/loss", "heldout/loss/language/eu", "heldout/loss/language/en"):
            points[key] = points["loss"][:: steps // 5]
        points["heldout/loss/stream/a_long_name"] = points["heldout/loss"]
    return Metrics(points, {}, steps)


def stage(name: str, start: float, end: float, steps: int, heldout: bool = False) -> Stage:
    return Stage(
        name=name,
        facts=[("time", "1 min 15 s"), ("weights", f"/{LONG}/weights")],
        modules=[
            Module("vision", 456_288, 0, "0f1e2d3c4b", "0f1e2d3c4b"),
            Module("connector", 12_416, 12_416, "random", "aa55aa55aa"),
            Module("language", 967_808, 5_000, "9988776655", "1122334455"),
        ],
        metrics=metrics(start, end, steps, heldout),
        measure="records",
        streams=[
            Share("captions_eu", 0.8, 0.79, 0.85, 0.9, 80_000),
            Share(LONG, 0.2, 0.21, 0.15, 0.1, 20_000),
        ],
        languages=[Share("eu", 0.8, 0.79, 0.85, 0.9, 80_000), Share("en", None, 0.21, 0.2, 0.1, 9)],
        samples=[("step 20", f"eu: {HOSTILE} {LONG}"), ("step 10", "…")] if heldout else [],
    )


def made_up(languages: tuple[str, ...] = ("eu", "en")) -> Report:
    answers = [
        Answer(
            "1",
            language,
            f"Zein zenbaki da hau? {HOSTILE}",
            truth if n % 4 != 1 else f"{HOSTILE} {LONG}",
            truth,
            n % 4 != 1,
            [np.full((32, 32, 3), 20 * n, np.uint8) if n else "12.png: no such image file"],
        )
        for language in languages
        for truth in KINDS.values()
        for n in range(3)
    ]
    scores = Scores(
        languages={key: {"loss": 0.1234, "perplexity": 1.131} for key in languages},
        groups=[Group(k, key, 9, 12, 4, f"{LONG}") for key in languages for k in KINDS],
        kinds={"number": "Which number"},
        answers=answers,
        misses=[answer for answer in answers if not answer.right],
        count=48 * len(languages),
        intervals=dict.fromkeys(languages, (0.62, 0.84)),
        fidelity={key: {"language_fidelity": 98.2, "undecided": 12.0} for key in languages},
    )
    return Report(
        title="Ikasitakoa & more",
        about=f"820 steps of training. {LONG}",
        stages=[
            stage("backbone", 6.5, 0.1, 600),
            stage("align", 2.4, 0.5, 120, heldout=True),
            stage("instruct", 0.9, 0.06, 100, heldout=True),
        ],
        scores=scores,
        facts=[("python", "3.11.15"), ("device", "1 x cpu")],
        seconds=254.7,
        missing=[f"3 pictures cannot be read: {LONG}"],
        compared=[
            Compared("align", "instruct", key, 48, 61.2, 75.0, (4.1, 23.5), 3, 9, 0.03, 13.0)
            for key in languages
        ],
    )


def test_intervals_fidelity_and_a_comparison_are_on_the_page():
    text = report_page(made_up())
    space = "\N{NARROW NO-BREAK SPACE}"
    assert f"62.0{space}% to 84.0{space}%" in text
    assert f"98.2{space}% (12.0{space}% too short to tell)" in text and "not decidable" in text
    assert "<a href='#comparison'>Comparison</a>" in text and "align → instruct" in text
    assert "+13.8 <small>[+4.1, +23.5]</small>" in text and "<td>0.0300</td><td>13.0</td>" in text


def test_the_page_loads_nothing():
    text = report_page(made_up())
    assert '<meta name="viewport" content="width=device-width' in text
    assert "Content-Security-Policy\" content=\"default-src 'none';" in text
    assert "<script" not in text
    links = re.findall(r"""(?:src|href)=["']?([^\s"'>]*)""", text)
    assert all(link.startswith(("data:", "#")) for link in links), "something is fetched"
    assert not re.findall(r"url\(|@import", text)
    assert text.count("data:image/png;base64,") == 2 * 4 * 2 + 2 * 4
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors == set(re.findall(r"<div id=(\w+)>", text))


def test_the_page_says_what_happened():
    text = report_page(made_up())
    for words in (
        "Ikasitakoa &amp; more",
        "Which number",
        "larger",
        "9 of 12",
        "36 of 48",
        "75.0",
        "33.3",  # the majority answer's share
        "0.123",
        "1.131",
        "1.44\N{NO-BREAK SPACE}million",
        "4\N{NO-BREAK SPACE}min\N{NO-BREAK SPACE}15\N{NO-BREAK SPACE}s",
        "align, held out<",
        "align, held out by stream",
        "12.png: no such image file",
        "80,000",
        "12,416",
    ):
        assert words in text, words
    assert "backbone, held out" not in text, "a chart without a curve"
    assert text.count("✓ right") + text.count("✗ wrong") == 24 + 8, (
        "right and wrong are said in words, not by colour alone"
    )
    assert text.count("<svg") == 3 + 2 * 2 + 3 * 5


def test_texts_from_data_stay_text():
    text = report_page(made_up())
    assert "<b>&</b>" not in text and "<script>" not in text
    assert HOSTILE in unescape(text)
    # a text that turns the reading order is in an element of its own direction
    for around in re.findall(r"<(\w+[^<>]*)>[^<>]*\u202e", text):
        assert "dir=auto" in around, around


def test_a_run_alone_has_no_headings_of_stages():
    report = made_up()
    text = report_page(report._replace(stages=report.stages[:1], scores=None, missing=[]))
    assert "<h3>backbone</h3>" in text, "on the card of its settings"
    assert text.count("backbone") == 1
    assert "Scores" not in text and "Answers" not in text and "<details" not in text
    assert "training loss, last steps" in text
    assert "No held-out loss was measured" in text


@pytest.mark.slow
@browser.needed
@pytest.mark.parametrize("languages", [("eu", "en"), tuple("abcdefghij")])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_no_sideways_scrolling_in_a_real_browser(tmp_path: Path, width: int, languages):
    page = tmp_path / "report.html"
    page.write_text(report_page(made_up(languages)), encoding="utf-8")
    shown = browser.show(page, tmp_path, width)
    assert shown.height > 2000, "the page did not load"
    assert shown.scroll <= shown.client <= width
