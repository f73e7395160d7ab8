"""The benchmark's numbers: the peer's work and field names, honest figures, refusals."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mllm_jax import bench
from mllm_jax.__main__ import main
from mllm_jax.sharding import make_mesh
from mllm_jax.stage import plan
from mllm_jax.training.flops import matmul_parameters
from tests import tiny

WORDS = "bench --size tiny --length 64 --batch 8 --steps 3".split()  # a row for each device
NOT_COMPARED = {"peer", "torch"}  # what the peer says of itself


def peer_source(shared: Path) -> Path:
    return shared / "peer" / "bench_torch.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    """What `mllm-jax bench --json FILE` leaves, of one short run."""
    file = tmp_path_factory.mktemp("bench") / "tiny.json"
    assert main([*WORDS, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_the_figures_belong_together(result):
    assert (result["size"], result["stage"], result["dtype"]) == ("tiny", "instruct", "float32")
    assert (result["batch"], result["length"], result["devices"]) == (8, 64, 8)
    seconds = result["median_step_seconds"]
    assert result["tokens_per_second"] == pytest.approx(8 * 64 / seconds, rel=0.05)
    rate = result["flops_per_step"] / seconds / 1e12
    assert result["teraflops_per_second"] == pytest.approx(rate, rel=0.05, abs=1e-4)
    assert result["compile_seconds"] > 0
    assert result["mfu"] is None, "a CPU has no published bfloat16 rate"
    assert result["loss"] == pytest.approx(math.log(1024), abs=0.7), "random weights, random text"


def test_what_is_printed_is_what_is_written(capsys, tmp_path):
    file = tmp_path / "one.json"
    assert main([*WORDS, "--stage", "align", "--steps", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed == file.read_text()
    assert json.loads(printed)["stage"] == "align"


def test_parameters_and_names_are_the_peers(result, shared):
    """The two lines can be laid side by side: same model, same part trained, same words."""
    text = peer_source(shared).read_text(encoding="utf-8")
    printed = text.split("print(json.dumps({")[1].split("}))")[0]
    names = {word.split('"')[1] for word in printed.split(",") if '":' in word}
    assert len(names) >= 10
    assert names - NOT_COMPARED <= result.keys()
    if importlib.util.find_spec("torch") is None:
        pytest.skip("the peer's model needs torch")
    spec = importlib.util.spec_from_file_location("bench_torch", peer_source(shared))
    assert spec is not None and spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    assert peer.SIZES == bench.SIZES
    sizes = {name: w.numel() for name, w in peer.build("tiny", "mlp").named_parameters()}
    assert result["parameters"] == sum(sizes.values())
    trained = sum(n for name, n in sizes.items() if "vision_tower" not in name)
    assert result["trainable"] == trained


@pytest.mark.parametrize("stage", bench.TRAINED)
def test_every_stage_claims_every_parameter(stage):
    work = bench.from_size("8b", stage, 2048, 8, "bfloat16", "full")
    planned = plan(work.model, work.compute, work.optimizer, make_mesh(work.mesh), steps=10)
    frozen = {"align": {"vision", "language"}, "instruct": {"vision"}, "full": set()}[stage]
    assert set(planned.abstract.frozen) == frozen
    assert set(planned.abstract.trainable) == {"vision", "connector", "language"} - frozen


def test_rows_are_an_image_and_trained_text():
    """The peer's labels: everything after the image is a target."""
    model = bench.from_size("tiny", "full", 64, 2, "float32", "none").model
    batch = bench.synthetic(model, 2, 64)
    patches = model.patches
    assert (batch.tokens[:, 1 : 1 + patches] == model.image_token).all()
    assert (batch.tokens == model.image_token).sum() == 2 * patches
    np.testing.assert_array_equal(batch.image_index[0, 1 : 1 + patches], np.arange(patches))
    assert batch.weights.sum() == 2 * (64 - patches - 1)
    assert (batch.targets[:, patches:-1] == batch.tokens[:, patches + 1 :]).all()


def test_a_stage_file_is_timed_as_it_is(data, tmp_path):
    config = tiny.config(data, tmp_path / "run", train={"microbatches": 2})
    work = bench.from_config(config, None, None, None, None)
    assert work.rows == config.data.rows // 2
    assert (work.model, work.optimizer, work.length) == (
        config.model,
        config.optimizer,
        config.data.length,
    )
    assert work.compute == config.compute
    changed = bench.from_config(config, 48, 16, "bfloat16", "full")
    assert (changed.length, changed.rows) == (48, 16)
    formats = {"compute": "bfloat16", "parameters": "bfloat16", "remat": "full"}
    assert changed.compute == dataclasses.replace(config.compute, **formats)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench --size tiny --batch 3", "--batch 3 does not divide over 8 devices"),
        ("bench --size tiny --length 17 --batch 8", "--length 17: too short for an image of 16"),
        ("bench --config none.yaml --stage align", "--stage align has no effect with --config"),
    ],
)
def test_refusals(words, said, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("mllm-jax: error: ") and error.count("\n") == 1
    assert said in error


def test_matmul_parameters_leave_out_the_look_up(result):
    model = bench.from_size("tiny", "full", 64, 8, "float32", "none").model
    assert sum(matmul_parameters(model).values()) < result["parameters"]
