"""Metrics of a run, read again: whole lines only, null as NaN, damage named."""

import json
import math
from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.report.metrics_file import read_lines, read_metrics


def test_curves_and_totals(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 0, "loss": 2.0, "loss/language/eu": 2.5, "share_records/stream/a": 1.0, "x": 1},
        {"step": 1, "loss": None, "heldout/loss": 1.5, "share_records/stream/a": 0.75},
        {"step": 2, "loss": 1.0, "loss/language/eu": 1.25},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"step": 3, "lo')
    metrics = read_metrics(path)
    assert metrics.steps == 3
    assert [step for step, _ in metrics.curves["loss"]] == [1, 2, 3]
    assert math.isnan(metrics.curves["loss"][1][1])
    assert metrics.under("loss/language/") == {"eu": [(1, 2.5), (3, 1.25)]}
    assert metrics.curves["heldout/loss"] == [(2, 1.5)]
    assert metrics.totals == {"share_records/stream/a": 0.75}
    assert "x" not in metrics.curves
    assert (metrics.total("loss"), metrics.middle("loss"), metrics.middle("no")) == (3.0, 2.0, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; the run has no steps"),
        ('{"step": 0}', "is empty; the run has no steps"),
        ("{}\n", "metrics.jsonl:1: not a line of metrics"),
        ('{"step": 0}\n{"step": 1, "loss": "low"}\n', "metrics.jsonl:2: not a line of metrics"),
        ('{"step": 0}\nnonsense\n', "metrics.jsonl:2: not JSON"),
        ("[1]\n", "metrics.jsonl:1: not a JSON object"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: no such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_lines_end_with_a_line_feed_alone(tmp_path: Path):
    """What other languages call the end of a line may stand inside a text."""
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"a": "\u2028\u0085"}, ensure_ascii=False) + "\n", "utf-8")
    assert list(read_lines(path)) == [{"a": "\u2028\u0085"}]
