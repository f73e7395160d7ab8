"""`bench --baseline`: what is run in which order, the ratio, and what is missing in one line."""

import json
from pathlib import Path

import pytest

import mllm_jax
from mllm_jax.__main__ import main
from mllm_jax.commands.bench import baseline
from mllm_jax.common.errors import RunError

FIELDS = ("median_step_seconds", "cpu_seconds")


class Machine:
    """Takes the place of the processes: answers at once, and remembers what was asked."""

    def __init__(self, compiles: bool):
        self.asked: list[list[str]] = []
        self.compiles = compiles

    def __call__(self, command: list[str], *_) -> list[dict]:
        words = command[2:]
        self.asked.append(words)
        if words[0] == "mllm_jax":
            return [self.answer(0.5, 0.8, platform="cpu", attention=a, remat="none")
                    for a in ("auto", "dense")]  # fmt: skip
        if "--compile" in words and not self.compiles:
            raise RunError("the PyTorch baseline failed with exit code 1: no compiler")
        wall = 1.0 / int(words[words.index("--threads") + 1]) + ("--compile" in words)
        return [self.answer(wall, 1.2, baseline="transformers")]

    @staticmethod
    def answer(wall: float, cpu: float, **others) -> dict:
        rate = {"tokens_per_second": 128 / wall, "batch": 2}
        return dict(zip(FIELDS, (wall, cpu), strict=True)) | rate | others


@pytest.mark.parametrize("compiles", [True, False])
def test_both_are_measured_in_turn(compiles, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="the PyTorch baseline needs torch")
    machine = Machine(compiles)
    monkeypatch.setattr(baseline, "objects", machine)
    monkeypatch.setattr(baseline.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(baseline.shutil, "which", lambda name: name)
    file = tmp_path / "x.jsonl"
    words = "bench --size tiny --baseline --rounds 2 --attention auto,dense --text-only --json"
    assert main([*words.split(), str(file)]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert lines == [json.loads(line) for line in file.read_text().splitlines()]
    tried = 4 if compiles else 2
    assert [line["round"] for line in lines] == [0] * (1 + tried) + [1] * 3 + [2] * 3
    assert ["baseline" in line for line in lines[-6:]] == [True, False, False] * 2
    assert all("--text-only" in words for words in machine.asked)
    assert {line["threads"] for line in lines[-6:] if "baseline" in line} == {2}, "its best"
    assert ("left out: the PyTorch baseline failed" in printed.err) != compiles
    assert "| PyTorch: not compiled, 2 threads" in printed.err
    assert "attention dense" in printed.err and "1.000" in printed.err and "1.500" in printed.err


def test_a_machine_without_a_compiler_is_said(capsys, monkeypatch):
    pytest.importorskip("torch", reason="the PyTorch baseline needs torch")
    monkeypatch.setattr(baseline, "objects", Machine(True))
    monkeypatch.setattr(baseline.shutil, "which", lambda name: None)
    assert main("bench --size tiny --baseline --rounds 1".split()) == 0
    assert "there is no C++ compiler" in capsys.readouterr().err


def test_the_installed_package_says_that_it_needs_a_clone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mllm_jax, "__file__", str(tmp_path / "mllm_jax" / "__init__.py"))
    assert main("bench --size tiny --baseline".split()) == 2
    error = capsys.readouterr().err
    assert "clone the repository" in error and error.count("\n") == 1


def test_torch_that_is_missing_is_said(capsys, monkeypatch):
    monkeypatch.setattr(baseline.importlib.util, "find_spec", lambda _: None)
    assert main("bench --size tiny --baseline".split()) == 2
    error = capsys.readouterr().err
    assert "needs torch" in error and error.count("\n") == 1


def test_a_process_that_fails_says_why():
    code = "raise ValueError('no such size')"
    with pytest.raises(RunError, match="exit code 1: ValueError: no such size"):
        baseline.objects([baseline.sys.executable, "-c", code], Path.cwd(), "it")


@pytest.mark.slow
def test_the_real_baseline_beside_ours(tmp_path, capsys):
    pytest.importorskip("torch", reason="the PyTorch baseline needs torch")
    file = tmp_path / "x.jsonl"
    words = "bench --size tiny --length 64 --steps 1 --baseline --rounds 1 --json"
    assert main([*words.split(), str(file)]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    theirs, ours = lines[-2:]
    assert theirs["parameters"] == ours["parameters"] and theirs["trainable"] == ours["trainable"]
    assert theirs["cpu_seconds"] > 0 and ours["cpu_seconds"] > 0
    assert "speed by CPU seconds" in capsys.readouterr().err
