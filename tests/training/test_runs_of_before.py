"""A run that commit 4a10a90 began, from when parameters were nested dicts: opens, resumes, exports.

run_at_4a10a90.tar.gz holds its data, its folder with the checkpoint of step 2 of 4, and what that
version computed when it continued: metrics.jsonl and the parameters after step 4. Two tables are
frozen; the tower's second layer is trained and never read, so it has no moments.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.json_file import read_json
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.data.mixture.order import VERSION as ORDER
from mllm_jax.training.loop import train
from tests.support import tiny

# Zero on the CPU that recorded it (x86-64 with AVX-512). For other CPUs XLA adds up in another
# order: with XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 parameters differ by up to 6e-8.
TOLERANCE = 1e-6
# softmax ignores a constant added to all scores, so this gradient is rounding noise around zero, of
# which Adam makes a step of up to the learning rate: 2e-5 there
NOISE = "vision/layers/attention/k/bias"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parents[1] / "checkpoints" / "run_at_4a10a90.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("HERE", str(tmp_path)))
    report = read_json(tmp_path / "run" / "data.json")
    assert report["order"] == ORDER, "batches are planned in another order now: record it again"
    return tmp_path


def leaves_of(folder: Path) -> dict[str, np.ndarray]:
    opened = open_model(folder)
    leaves = opened.leaves(conversions.abstract(opened.config.model))
    return {path: leaf.read() for path, leaf in leaves.items()}


def test_resumes_as_it_was_continued_then(before: Path) -> None:
    config = loading.load(Config, before / "run" / "config.yaml")
    train(config, True, jax.devices()[:1])
    lines = (before / "metrics.jsonl").read_text().splitlines()
    recorded, resumed = [json.loads(line) for line in lines], tiny.numbers(before / "run")
    assert [line["step"] for line in resumed] == [0, 1, 2, 3]
    for now, then in zip(resumed, recorded, strict=True):
        assert now["records_crc32"] == then["records_crc32"]
        np.testing.assert_allclose(now["loss"], then["loss"], rtol=TOLERANCE)
    now = leaves_of(before / "run")
    with np.load(before / "step4.npz") as then:
        assert set(then) < now.keys()
        for path in then:
            if path != NOISE:
                np.testing.assert_allclose(now[path], then[path], rtol=0, atol=TOLERANCE)


def test_exports_what_it_holds(before: Path, tmp_path: Path) -> None:
    held = leaves_of(before / "run")
    conversions.to_hf(before / "run", tmp_path / "hf")
    exported = leaves_of(tmp_path / "hf")
    assert held.keys() == exported.keys()
    for path, x in held.items():
        assert (exported[path].dtype, exported[path].tobytes()) == (x.dtype, x.tobytes()), path
