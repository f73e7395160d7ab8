"""Several settings in turn: all are measured, best first; what does not fit is passed over."""

import json

import pytest

from mllm_jax.__main__ import main
from mllm_jax.commands.bench import turns
from mllm_jax.commands.bench.request import Request
from mllm_jax.commands.bench.work import Axes, combinations, from_size

SETTINGS = ("--batch", "8", "--length", "32", "--text-only", "--steps", "1")


pytestmark = pytest.mark.usefixtures("one_device")


def test_settings_are_measured_in_turn(bench_stage, tmp_path, capsys):
    words = ("bench", "--config", bench_stage, *SETTINGS, "--attention", "auto,dense")
    assert main([*words, "--json", str(tmp_path / "x.jsonl")]) == 0
    printed = capsys.readouterr()
    results = [json.loads(line) for line in printed.out.splitlines()]
    assert [result["attention"] for result in results] == ["auto", "dense"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=2e-4)
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    rates = [json.loads(line)["tokens_per_second"] for line in lines]
    assert rates == sorted(rates, reverse=True) and len(rates) == 2
    assert "| attention" in printed.err and "100%" in printed.err


def test_what_does_not_fit_is_passed_over(bench_stage, capsys, monkeypatch):
    monkeypatch.setattr(turns, "memory", lambda: 1000)
    settings = ("--batch", "8,16", *SETTINGS[2:])
    assert main(["bench", "--config", bench_stage, *settings]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "8 x 32 tokens, 1 microbatch, attention auto, remat none: passed over: " in printed.err
    assert "GiB by the compiler" in printed.err
    assert printed.err.count("since it did not fit with fewer rows") == 1
    assert printed.err.splitlines()[-1].startswith("mllm-jax: error: bench: no setting")


def test_a_full_memory_is_passed_over_too(monkeypatch, capsys):
    def measure(work, *_) -> dict:
        if work.rows > 8:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")
        return {"tokens_per_second": 1.0, "attention": "auto", "remat": "none", "batch": 8,
                "microbatches": 1, "median_step_seconds": 1.0, "program_gib": 0.1}  # fmt: skip

    monkeypatch.setattr(turns, "measure", measure)
    assert main("bench --size tiny --batch 8,16,32".split()) == 0
    error = capsys.readouterr().err
    assert error.count("out of device memory") == 1
    assert error.count("did not fit with fewer rows") == 1


def test_a_sweep_fills_what_no_flag_names():
    work = from_size("tiny", "instruct", 64, 6, "float32", "none")
    axes = turns.swept(work, Axes(remat=("full",)))
    assert axes.rows == [6, 12, 24] and axes.microbatches == [1, 2] and axes.remat == ("full",)
    assert {"auto", "dense", "blocks"} <= set(axes.attention)
    assert len(combinations(work, axes)) == 6 * len(axes.attention)
    assert turns.swept(work, Axes(rows=(3,))).microbatches == [1]


def test_one_setting_is_no_table(monkeypatch, capsys):
    monkeypatch.setattr(turns, "measure", lambda *_, **__: {"loss": 1.0})
    turns.main(Request(size="tiny", remat=("dots",)))
    printed = capsys.readouterr()
    assert json.loads(printed.out)["loss"] == 1.0 and printed.err == ""
