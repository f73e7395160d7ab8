"""A stage with NEFTune: the same noise on any devices, in any microbatches, resumed or straight."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.training import run_folder, setup
from mllm_jax.training.loop import train
from tests.support import hlo, packed, tiny
from tests.support.resumed import resumed

ALPHA = 20.0  # m = 20 / sqrt(96 x 32) = 0.36: no rounding hides it
ALL_AXES = {"data": 2, "fsdp": 2, "tensor": 2}


def stage(folder: Path, out: Path, alpha: float = ALPHA, **sections: Any) -> Config:
    steps = {"steps": 4, "save_every": 2, "keep": 3}
    return tiny.config(folder, out, train=steps, optimizer={"neftune_alpha": alpha}, **sections)


def trained(run: Path) -> dict[str, np.ndarray]:
    leaves = stored_leaves(run / "checkpoints" / "4" / "params")
    return {path: np.asarray(leaf.read()) for path, leaf in leaves.items()}


def test_resumed_equals_straight_to_the_bit(data, tmp_path):
    straight = train(stage(data, tmp_path / "straight"), devices=jax.devices()[:1])
    again = resumed(straight, tmp_path)
    assert tiny.numbers(again) == tiny.numbers(straight)
    expected = trained(straight)
    for path, x in trained(again).items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


@pytest.mark.parametrize(
    ("shape", "microbatches"),
    [
        pytest.param({"devices": 1}, 4, marks=pytest.mark.slow),
        pytest.param({"data": 8}, 1, marks=pytest.mark.slow),
        (ALL_AXES, 2),
    ],
    ids=str,
)
def test_devices_and_microbatches_change_nothing(make_mesh, shape, microbatches):
    """Loss and gradients of packed rows, but for the rounding of sums in another order."""
    batch = packed.batch("ttbbiittbibttbii", "neftune")
    one = packed.compiled("neftune", make_mesh(devices=1), 1)
    many = packed.compiled("neftune", make_mesh(**shape), microbatches)
    want, expected, _ = one.first_step(batch)
    got, gradient, _ = many.first_step(batch)
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, err_msg=name)
    for path, x in gradient.items():
        assert np.abs(x - expected[path]).max() <= 1e-5 * np.abs(expected[path]).max(), path


def test_every_update_has_noise_of_its_own(make_mesh):
    """The same parameters, rows and program: only the number of the update differs."""
    run = packed.compiled("neftune", make_mesh(devices=1), 1)
    batch = setup.shard_batch(packed.batch("t" * packed.ROWS, "neftune"), run.setup.mesh)

    def loss(step: int) -> float:
        now = run.fresh._replace(step=np.asarray(step, run.fresh.step.dtype))
        return float(run.call(jax.device_put(now, run.setup.shardings), batch)[1]["loss"])

    losses = [loss(step) for step in (0, 1, 2, 0)]
    assert losses[0] == losses[3] and len(set(losses)) == 3


def test_another_alpha_is_another_run(data, tmp_path):
    """`--resume` refuses it as it refuses another rate."""
    before, now = (stage(data, tmp_path / "run", alpha) for alpha in (ALPHA, 5.0))
    (key,) = run_folder.differences(before, now)
    assert key == "optimizer.neftune_alpha" and not key.startswith(run_folder.FREE)


def test_alpha_0_is_the_stage_without_it(data, tmp_path):
    """The same stage in every field, so the same program (models/test_neftune.py) and run."""
    absent = tiny.tree(data, tmp_path)
    assert "neftune_alpha" not in absent["optimizer"]
    zero = {**absent, "optimizer": absent["optimizer"] | {"neftune_alpha": 0}}
    assert loading.build(Config, absent) == loading.build(Config, zero)


def test_the_noise_costs_no_traffic(make_mesh):
    """Every device draws for its own rows: what crosses is what crosses without noise."""
    mesh = make_mesh(**ALL_AXES)
    plain, noisy = (packed.compiled(stage, mesh, 2) for stage in ("instruct", "neftune"))
    assert noisy.text != plain.text
    crossing = [
        Counter((x.kind, *x.shapes, x.axes) for x in hlo.collectives(run.text, mesh))
        for run in (plain, noisy)
    ]
    assert crossing[0] == crossing[1]


def test_a_stage_of_captions_is_refused(data, tmp_path):
    """One line, before anything is written."""
    streams = tiny.tree(data, tmp_path)["data"]["streams"]
    captions = {
        name: {**streams[name], "format": chat}
        for name, chat in (("eu", "plain"), ("en", "plain_newline"))
    }
    with pytest.raises(ConfigError) as error:
        stage(data, tmp_path / "run", data={"streams": captions})
    assert str(error.value) == (
        "optimizer.neftune_alpha=20.0: the stage has no text to read, all its streams are captions "
        "(format plain or plain_newline); leave it out"
    )
    captions["text"] = {**streams["text"], "format": "llama3"}
    stage(data, tmp_path / "run", data={"streams": captions})
    document = {**captions["eu"], "layout": "text"}
    stage(data, tmp_path / "run", data={"streams": {"eu": document, "en": captions["en"]}})


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf"), "five", 1e9])
def test_what_alpha_cannot_be(data, tmp_path, alpha):
    with pytest.raises(ConfigError, match=r"^optimizer\.neftune_alpha") as error:
        stage(data, tmp_path / "run", alpha)
    assert "\n" not in str(error.value)
