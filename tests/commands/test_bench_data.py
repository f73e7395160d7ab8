"""The loader's benchmark: figures that belong together; the PyTorch baseline's field names."""

import json
from pathlib import Path

import pytest

from mllm_jax.__main__ import main
from mllm_jax.commands.bench import loader as bench_data
from mllm_jax.config import loading
from tests.support import tiny


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_data, "FAR", 50)
    tiny.make_data(tmp_path / "data")
    config = tiny.config(tmp_path / "data", tmp_path / "run")
    loading.dump(config, tmp_path / "stage.yaml")
    return tmp_path / "stage.yaml"


def test_the_figures_belong_together(stage, capsys):
    assert main(["bench", "--data", "--config", str(stage), "--steps", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workers"] == 0
    assert found["images_per_second"] <= 2 * found["records_per_second"]
    assert 0 < found["useful_tokens"] <= 1 and 0 < found["slots_used"] <= 1
    config = loading.load(bench_data.Config, stage)
    places = 3 * config.data.rows * config.data.length
    tokens = found["tokens_per_second"] * found["seconds"]
    assert tokens == pytest.approx(found["useful_tokens"] * places, rel=0.3)
    for name in ("start_seconds", "plan_seconds", "seek_seconds", "images_per_cpu_second"):
        assert found[name] >= 0


def test_the_baseline_prints_the_same_names():
    file = Path(__file__).parents[1] / "benchmarks" / "pytorch_loader.py"
    printed = file.read_text(encoding="utf-8").split("json.dumps(")[1].split("if __name__")[0]
    names = {line.split('"')[1] for line in printed.splitlines() if '":' in line}
    assert len(names) > 6
    ours = Path(bench_data.__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in ours for name in names - {"baseline", "torch"})
