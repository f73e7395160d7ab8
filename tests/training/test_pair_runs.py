"""Stages with a regularizer over pairs: refused, resumed, on many devices, and with weight 0."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mllm_jax.batch import Batch
from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.pairs import PairsConfig
from mllm_jax.config.stage import Config
from mllm_jax.data.mixture import packing
from mllm_jax.data.mixture.pairs import locate
from mllm_jax.training import run_folder, setup, state
from mllm_jax.training.loop import train
from tests.support import packed, tiny
from tests.support.resumed import resumed

TERMS = {"kl": 0.5, "contrastive": 0.2}


@pytest.fixture
def paired(data) -> Path:
    """The tiny data with a file of pairs: every fourth has unequal answers, one record no partner.

    Pictures are asked about in Basque and English and described in Basque.
    """
    records = []
    for language in ("eu", "en"):
        for number, record in enumerate(json.loads((data / f"{language}.json").read_text("utf-8"))):
            record = {**record, "id": f"{number}/{language}", "pair": number}
            if number % 4:
                eu = json.loads((data / "eu.json").read_text("utf-8"))[number]
                record["conversations"][1] = eu["conversations"][1]
            records.append(record)
    del records[3]
    (data / "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    return data


def tree(data: Path, out: Path, terms: dict[str, Any] | None) -> dict[str, Any]:
    raw = tiny.tree(data, out)
    stream = {**raw["data"]["streams"]["eu"], "path": str(data / "pairs.json"), "pairs": "pair"}
    raw["data"] |= {"streams": {"pairs": stream, "text": raw["data"]["streams"]["text"]}}
    raw["data"]["length"] = 160
    raw["train"] = {"steps": 4, "save_every": 2, "keep": 3}
    if terms is not None:
        raw["optimizer"]["pairs"] = terms
    return raw


def stage(data: Path, out: Path, terms: dict[str, Any] | None) -> Config:
    return loading.build(Config, tree(data, out, terms))


def stored(run: Path, step: int = 4) -> dict[str, np.ndarray]:
    leaves = stored_leaves(run / "checkpoints" / str(step) / "params")
    return {path: np.asarray(leaf.read()) for path, leaf in leaves.items()}


def assert_same_runs(one: Path, other: Path) -> None:
    assert tiny.numbers(one) == tiny.numbers(other)
    expected = stored(other)
    for path, x in stored(one).items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


# ----------------------------------------------------------------------------------------- refused


def test_a_stage_without_pairs_is_refused(data, tmp_path):
    with pytest.raises(ConfigError) as error:
        tiny.config(data, tmp_path, optimizer={"pairs": {"kl": 0.1}})
    assert str(error.value) == (
        "optimizer.pairs: kl=0.1, contrastive=0.0, but no stream has pairs; name the field that "
        "two records share under data.streams.*.pairs"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "plain"}, "data.streams.*.pairs='pair': pairs are of questions, and documents"),
        ({"layout": "text"}, "data.streams.*.pairs='pair': pairs are of questions, and documents"),
    ],
)
def test_streams_without_questions_have_no_pairs(data, tmp_path, changes, message):
    raw = tree(data, tmp_path, TERMS)
    raw["data"]["streams"]["pairs"] |= changes
    with pytest.raises(ConfigError) as error:
        loading.build(Config, raw)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_held_out_streams_have_no_pairs(data, tmp_path):
    raw = tree(data, tmp_path, TERMS)
    raw["train"]["evaluate"] = {"streams": {"own": raw["data"]["streams"]["pairs"]}}
    with pytest.raises(ConfigError, match=r"^train\.evaluate\.streams\.own: pairs has no effect"):
        loading.build(Config, raw)


@pytest.mark.parametrize(
    "terms",
    [{"kl": -1}, {"contrastive": float("nan")}, {"kl": 1e9}, {"temperature": 0}, {"kl": "much"}],
    ids=str,
)
def test_what_weights_cannot_be(data, tmp_path, terms):
    with pytest.raises(ConfigError, match=r"^optimizer\.pairs\.(kl|contrastive|temp)") as error:
        stage(data, tmp_path, terms)
    assert "\n" not in str(error.value)


def test_other_weights_are_another_run(data, tmp_path):
    """`--resume` refuses them as it refuses another rate."""
    before, now = (stage(data, tmp_path, {"kl": kl}) for kl in (0.5, 0.4))
    (key,) = run_folder.differences(before, now)
    assert key == "optimizer.pairs.kl" and not key.startswith(run_folder.FREE)


# ----------------------------------------------------------------------------------------- nothing


def test_weights_of_0_are_the_stage_without_them(data, tmp_path):
    """The same stage in every field, so the same program and run."""
    absent, zero = stage(data, tmp_path, None), stage(data, tmp_path, {"kl": 0, "contrastive": 0})
    assert absent == zero and not absent.optimizer.pairs.acts
    assert not stage(data, tmp_path, {"temperature": 0.1}).optimizer.pairs.acts


@pytest.mark.slow
def test_a_temperature_alone_changes_no_byte(paired, tmp_path):
    """Batches, program, losses and parameters; rows are planned as with weights above 0."""
    one = jax.devices()[:1]
    absent = train(stage(paired, tmp_path / "absent", None), devices=one)
    idle = train(stage(paired, tmp_path / "idle", {"kl": 0, "temperature": 1.0}), devices=one)
    assert_same_runs(idle, absent)
    acting = train(stage(paired, tmp_path / "acting", TERMS), devices=one)
    for line, plain in zip(tiny.numbers(acting), tiny.numbers(absent), strict=True):
        assert line["records_crc32"] == plain["records_crc32"]
    assert any((x != stored(absent)[path]).any() for path, x in stored(acting).items())


# ------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_resumed_equals_straight_to_the_bit(paired, tmp_path):
    straight = train(stage(paired, tmp_path / "straight", TERMS), devices=jax.devices()[:1])
    assert_same_runs(resumed(straight, tmp_path), straight)
    lines = tiny.numbers(straight)
    assert sum(line["pairs"] for line in lines) > sum(line["pairs_unequal"] for line in lines) > 0
    for line in lines:
        assert {"pair_kl", "pair_contrastive", "pair_cosine"} <= line.keys()
    report = json.loads((straight / "data.json").read_text("utf-8"))["streams"]["pairs"]
    assert report["paired"] == {"pairs": 23, "alone": 1, "apart": 0}


def batch() -> Batch:
    """Rows of a pair with a picture each, and a text; every other pair has unequal answers."""
    rows = []
    for number in range(packed.ROWS):
        rng = np.random.default_rng(number)
        images = [packed.image(rng, "square") for _ in range(2)]
        one, other = (packed.example(rng, [image], 10, "instruct") for image in images)
        if number % 2:
            other.tokens[-5:] = one.tokens[-5:]
        text = packed.example(rng, [], int(rng.integers(6, 15)), "instruct")
        examples = [text, one._replace(side=1), other._replace(side=2)]
        row = packing.assemble(examples, images, packed.LENGTH, packed.SLOTS, packed.P, packed.SIDE)
        partners, spans = locate(examples, packed.LENGTH, 2)
        rows.append(row._replace(partners=partners, spans=spans))
    return packing.stack(rows)


@functools.cache
def first_step(mesh, microbatches: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, gradient) of one step of the real model."""
    made = packed.make_setup("instruct", mesh)
    params = jax.device_put(packed.drawn("instruct"), made.shardings.params)
    fresh = state.create_state(params, made.optimizer, made.abstract, made.shardings)
    call = setup.compile_train_step(
        made, made.abstract, batch(), microbatches, 2, 2, terms=PairsConfig(**TERMS)
    )
    run = packed.Run(made, call.call, jax.tree.map(np.asarray, fresh))
    return run.first_step(batch())[:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "microbatches"),
    [
        ({"devices": 1}, 4),
        ({"data": 8}, 1),
        ({"fsdp": 4, "tensor": 2}, 4),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2),
    ],
    ids=str,
)
def test_devices_and_microbatches_change_nothing(make_mesh, shape, microbatches):
    """The real model: losses and gradients, but for the rounding of sums in another order."""
    want, expected = first_step(make_mesh(devices=1), 1)
    got, gradient = first_step(make_mesh(**shape), microbatches)
    assert want["pairs"] == packed.ROWS and want["pairs_unequal"] == packed.ROWS // 2
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, err_msg=name)
    for path, x in gradient.items():
        assert np.abs(x - expected[path]).max() <= 1e-5 * np.abs(expected[path]).max(), path
