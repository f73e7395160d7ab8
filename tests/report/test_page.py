"""The page, built from a made-up run: what stands in it, and that a real browser shows it."""

import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.report import charts, page
from tests.support import browser

KINDS = {
    "number": "hirurogeita hamazazpi",
    "parity": "bakoitia",
    "sum": "hamalau",
    "larger": "berdinak dira",
}


def make_stage(out: Path, name: str, start: float, end: float, steps: int) -> dict:
    (out / name).mkdir(parents=True)
    lines = []
    for step in range(steps):
        loss = end + (start - end) * math.exp(-6 * step / steps) * (1 + 0.15 * math.sin(step * 7.3))
        line = {
            "step": step,
            "loss": loss,
            "loss/language/eu": loss,
            "real_tokens_per_second": 9000.0 + step,
        }
        line |= {"share_records/stream/captions_eu": 0.8, "share_records/stream/captions_en": 0.2}
        if step % 5:  # a step may have no token of a language
            line["loss/language/en"] = loss * 0.8
        lines.append(line)
    (out / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "name": name,
        "run": name,
        "seconds": 75.4,
        "settings": {"rows": 8, "length": 288, "learning_rate": 2e-3, "schedule": "cosine"},
        "modules": [
            {
                "module": "vision",
                "parameters": 456288,
                "trained": "no",
                "before": "0f1e2d3c4b",
                "after": "0f1e2d3c4b",
            },
            {
                "module": "connector",
                "parameters": 12416,
                "trained": "yes",
                "before": "random",
                "after": "aa55aa55aa",
            },
            {
                "module": "language",
                "parameters": 967808,
                "trained": "partly",
                "before": "9988776655",
                "after": "1122334455",
            },
        ],
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A recipe's folder as `recipe.run` leaves it, without any training."""
    out = tmp_path / "run"
    stages = [
        make_stage(out, *stage)
        for stage in (
            ("backbone", 6.5, 0.1, 600),
            ("align", 2.4, 0.5, 120),
            ("instruct", 0.9, 0.06, 500),
        )
    ]
    (out / "summary.json").write_text(
        json.dumps(
            {
                "stages": stages,
                "seconds": {"data": 4.2, "evaluation": 21.0, "export": 3.3},
                "versions": {"python": "3.11.15", "jax": "0.10.2"},
                "device": "1 x cpu",
            }
        )
    )
    (out / "evaluation").mkdir()
    answers = []
    for language in ("eu", "en"):
        for kind, truth in KINDS.items():
            for n in range(12):
                image = tmp_path / f"{n}.png"
                Image.new("RGB", (32, 32), (20 * n, 20 * n, 200)).save(image)
                right = n % 4 != 1
                answers.append(
                    {
                        "id": f"{kind}-{language}-{n:06d}",
                        "language": language,
                        "images": [str(image)],
                        "question": "<image>\nZein zenbaki da hau? <b>&</b>",
                        "answer": truth if right else "laurogeita hemezortzi",
                        "truth": truth,
                        "correct": right,
                    }
                )
    (out / "evaluation" / "answers.jsonl").write_text(
        "".join(json.dumps(answer) + "\n" for answer in answers)
    )
    score = {"exact_match": 0.75, "count": 48, "loss": 0.1234, "perplexity": 1.131}
    (out / "evaluation" / "scores.json").write_text(
        json.dumps({"languages": {"eu": score, "en": score}})
    )
    return out


def test_the_page_stands_alone(run: Path):
    text = page.build_report(run).read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width' in text
    assert "<script" not in text
    assert all(
        link.startswith("data:") for link in re.findall(r"""(?:src|href)=["']?([^\s"'>]*)""", text)
    ), "something is fetched"
    assert not re.findall(r"url\(|@import", text)
    assert text.count("data:image/png;base64,") == 2 * 4 * 3 + 12


def test_the_page_says_what_happened(run: Path):
    text = page.build_report(run, title="Ikasitakoa & more").read_text(encoding="utf-8")
    for words in (
        "Ikasitakoa &amp; more",
        "Which number",
        "Larger digit",
        "9 of 12",
        "36 of 48",
        "75.0",
        "0.123",
        "1.131",
        "1,436,512",
    ):
        assert words in text, words
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in text
    assert "<b>" not in text
    assert text.count("✓ right") + text.count("✗ wrong") == 36, (
        "right and wrong are said in words, not by colour alone"
    )
    assert text.count("<svg") == 3
    assert (
        "4\N{NO-BREAK SPACE}min\N{NO-BREAK SPACE}15\N{NO-BREAK SPACE}s" in text
    )  # 3 x 75.4 + 4.2 + 21.0 + 3.3 = 254.7


def test_a_missing_file_is_named(run: Path):
    (run / "evaluation" / "answers.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"answers\.jsonl: no such file"):
        page.build_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("key", "language", "kind"),
    [
        ("number-eu-000001", "eu", "number"),
        ("into-it-eu-000001", "eu", "into-it"),
        ("17", "eu", "question"),
        ("number-eu-1", "en", "question"),
    ],
)
def test_kind_of(key: str, language: str, kind: str):
    assert page.kind_of({"id": key, "language": language}) == kind


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
    svg = charts.line_chart(
        {"eu": [(1.0, 6.5), (2.0, 0.01)], "en": [(1.0, 6.5), (2.0, 0.0101)], "it": []},
        "step",
        "loss",
    )
    numbers = [
        tuple(map(float, point.split(",")))
        for line in re.findall(r'points="([^"]+)"', svg)
        for point in line.split()
    ]
    assert len(numbers) == 8
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for x, _ in numbers)
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for _, y in numbers)
    names = [float(y) for y in re.findall(r'class="name c\d" x="[\d.]+" y="([\d.]+)"', svg)]
    assert abs(names[0] - names[1]) >= 14, "names at the ends do not overlap"


def test_a_chart_without_steps_says_so():
    assert charts.line_chart({"eu": []}, "step", "loss") == "<p>No steps yet.</p>"


@pytest.mark.slow
@browser.needed
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_no_sideways_scrolling_in_a_real_browser(run: Path, tmp_path: Path, width: int):
    shown = browser.show(page.build_report(run), tmp_path, width)
    assert shown.height > 2000, "the page did not load"
    assert shown.scroll <= shown.client <= width
