"""The commands that are kept for a GPU can be typed, and what they find is not lost."""

import dataclasses
import json

import pytest

from mllm_jax.commands.bench.request import Request
from mllm_jax.commands.bench.work import combinations
from mllm_jax.commands.main import make_parser
from tests.benchmarks import on_gpu
from tests.benchmarks.on_gpu import Command

BENCH = [command for command in on_gpu.commands() if command.words[0] == "mllm_jax"]
PYTORCH = [command for command in on_gpu.commands() if "pytorch" in command.name]


@pytest.mark.parametrize("command", BENCH, ids=lambda command: command.name)
def test_our_steps_are_what_bench_takes(command: Command):
    from mllm_jax.commands.bench.turns import _asked

    options, rest = make_parser().parse_known_args(command.words[1:])
    options.overrides = tuple(rest)
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Request)}
    request = Request(**values)
    request.check()
    assert combinations(*_asked(request))


@pytest.mark.parametrize("command", PYTORCH, ids=lambda command: command.name)
def test_pytorchs_steps_are_what_the_baseline_takes(command: Command):
    pytest.importorskip("torch", reason="the PyTorch baseline needs torch")
    from tests.benchmarks import pytorch_baseline

    assert pytorch_baseline.parse(command.words[1:]).device == "cuda"


def test_tests_are_those_that_there_are():
    for group, files in on_gpu.TESTS.items():
        assert all((on_gpu.ROOT / file).exists() for file in files.split()), group


def test_what_was_found_stays_when_a_command_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "partly.py").write_text("print('{\"rate\": 3}', flush=True)\nraise SystemExit(4)\n")
    (tmp_path / "endless.py").write_text("print('{\"rate\": 5}', flush=True)\nwhile True: pass\n")
    for name, limit in (("partly", 60), ("endless", 3)):
        assert not on_gpu.run(Command("x", name, [name]), tmp_path, limit)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": "partly", "rate": 3},
        {"name": "endless", "rate": 5},
    ]
    said = capsys.readouterr().out
    assert "partly: FAILED (4), see" in said and "endless: FAILED (no end after 3 s)" in said


def test_groups_are_chosen_by_name(capsys):
    assert on_gpu.main(["out", "--list", "--only", "kernels,8b"]) == 0
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["kernels", "8b-ours", "8b-pytorch", "8b-pytorch-compiled"]
    with pytest.raises(SystemExit):
        on_gpu.main(["out", "--only", "9b"])
