"""A run whose disk fails it: full while saving, or a last checkpoint that was damaged."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import jax
import pytest

from mllm_jax.checkpoints.manifest import DamagedCheckpoint
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import RunError
from mllm_jax.config.stage import Config
from mllm_jax.conversion.conversions import abstract
from mllm_jax.training.loop import train
from tests.support import disks, tiny


def run(config: Config, resume: bool = False, **knobs) -> Path:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **knobs))
    return train(config, resume, jax.devices()[:1])


def losses(folder: Path) -> list[tuple[int, float, int]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["records_crc32"]) for row in rows]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    return run(tiny.config(data, tmp_path_factory.mktemp("straight") / "run"))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 8 MB where the checkpoints of `tmp_path / "run"` will lie."""
    with disks.small_disk(tmp_path, megabytes=8) as disk:
        yield disk


# Orbax leaves the event loop of a failed save to the garbage collector, which complains
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_space(
    data, straight, tmp_path, small_disk
):
    config = tiny.config(data, tmp_path / "run")
    folder = tmp_path / "run"
    run(config, stop_at=4)
    (folder / "checkpoints").rename(tmp_path / "moved")
    subprocess.run(
        ["cp", "-r", str(tmp_path / "moved"), str(small_disk / "checkpoints")], check=True
    )
    (folder / "checkpoints").symlink_to(small_disk / "checkpoints")
    filler = disks.fill(small_disk)
    with pytest.raises(RunError, match=r"the disk is full .*checkpoint 4 is intact") as error:
        run(config, resume=True)
    assert str(folder / "checkpoints") in str(error.value) and "\n" not in str(error.value)
    assert sorted(os.listdir(small_disk / "checkpoints")) == ["4"]
    filler.unlink()
    run(config, resume=True)
    assert losses(folder) == losses(straight)
    assert sorted(os.listdir(small_disk / "checkpoints")) == ["12", "8"]


@pytest.mark.slow
def test_a_damaged_last_checkpoint(data, straight, tmp_path, capsys):
    """It ends the resume by default; with `previous` the run goes on from the one before."""
    config = tiny.config(data, tmp_path / "run")
    folder = run(config, stop_at=8)
    files = (folder / "checkpoints" / "8" / "params").rglob("d/*")
    path = max(files, key=lambda x: x.stat().st_size)
    words = bytearray(path.read_bytes())
    words[len(words) // 2] ^= 1
    path.write_bytes(words)
    with pytest.raises(DamagedCheckpoint, match=f"8 is damaged: {path}: holds other bytes"):
        run(config, resume=True)
    source = open_model(folder)
    for read in (source.leaves, source.load):
        with pytest.raises(DamagedCheckpoint, match=f"{path}: holds other bytes"):
            read(abstract(source.config.model))
    run(config, resume=True, on_damage="previous")
    assert "continuing from step 4" in capsys.readouterr().err
    assert losses(folder) == losses(straight)
    assert (folder / "checkpoints" / "8.damaged").is_dir()


@pytest.mark.slow  # which checkpoints stay: tests/checkpoints/test_retention.py
def test_the_best_and_every_eighth_checkpoint_stay_and_are_models(data, tmp_path):
    config = tiny.config(data, tmp_path / "run")
    folder = run(config, save_every=2, keep=1, keep_every=8, keep_best=1)
    rows = losses(folder)
    means = {}
    tokens = [
        json.loads(line)["trained_tokens"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    for step in range(2, 13, 2):
        part = range(step - 2, step)
        total = sum(rows[i][1] * tokens[i] for i in part)
        means[step] = total / sum(tokens[i] for i in part)
    best = min(means, key=lambda step: means[step])
    stay = {8, 12, best}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {str(s) for s in stay}
    for step in stay:
        source = open_model(folder / "checkpoints" / str(step))
        shapes = abstract(source.config.model)
        assert source.load(shapes).keys() == shapes.keys()
