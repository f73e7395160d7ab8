"""Whole runs with every way to store parameters, moments and what the backward pass needs.

What is equal to the bit, and what is not:

- A resumed run and one that was never stopped: all numbers. The program is the same, a checkpoint
  holds the state as it is, and random roundings follow from step, parameter and place alone.
- Eight devices and one: the records, the learning rates and the random bits. Sums over rows and
  units have another order on another mesh, so the last bits of gradients differ; a number that is
  rounded to fewer bits then goes to the other neighbour once in a while.
- One remat policy and another: nothing, in theory, but a compiler joins operations in its own way
  in each program, so the last bits differ too.

Four steps here differ by 6e-5 of a gradient's norm at most and by 5e-6 of a loss.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax.conversion import conversions
from mllm_jax.models.layers import REMAT
from mllm_jax.training.loop import train
from tests.support import tiny
from tests.support.resumed import resumed

HALF = {"parameters": "bfloat16", "gradients": "bfloat16"}
FORMS: dict[str, tuple[dict, dict]] = {
    f"{moments} {rounding}": (
        {} if rounding == "float32" else HALF,
        {"moments": moments} | ({} if rounding == "float32" else {"rounding": rounding}),
    )
    for moments in ("float32", "bfloat16", "int8")
    for rounding in ("float32", "nearest", "stochastic", "kahan")
}
REPRESENTATIVE = ("int8 float32", "int8 stochastic", "bfloat16 kahan")
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
TO_THE_BIT = ("step", "records_crc32", "trained_tokens", "learning_rate/all", "finite")
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.make_data(folder)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run(form, remat, devices)`: a run of four steps, made once."""

    @functools.cache
    def make(form: str, remat: str = "full", devices: int = 1) -> Path:
        compute, optimizer = FORMS[form]
        out = tmp_path_factory.mktemp("run") / "run"
        config = tiny.config(
            data,
            out,
            compute={**compute, "remat": remat, "attention": "blocks"},
            optimizer=optimizer,
            train={"steps": 4, "save_every": 2, "keep": 2},
            mesh=MESH if devices == 8 else {"data": 1},
        )
        return train(config, devices=jax.devices()[:devices])

    return make


def near(run: Path, other: Path) -> None:
    """The same records, and losses and norms nearly equal, at every step."""
    for one, two in zip(tiny.numbers(run), tiny.numbers(other), strict=True):
        assert {name: one[name] for name in TO_THE_BIT} == {name: two[name] for name in TO_THE_BIT}
        for name in ("loss", "grad_norm", "param_norm", "update_norm"):
            np.testing.assert_allclose(one[name], two[name], rtol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_resumed_equals_straight_to_the_bit(run: Run, tmp_path: Path, form: str) -> None:
    """All numbers of the last two of four steps, from the checkpoint of step 2."""
    again = resumed(run(form), tmp_path)
    assert tiny.numbers(again) == tiny.numbers(run(form))


@pytest.mark.slow
@pytest.mark.parametrize("form", REPRESENTATIVE)
def test_eight_devices_equal_one(run: Run, form: str) -> None:
    near(run(form, devices=8), run(form))


@pytest.mark.slow
@pytest.mark.parametrize("remat", [name for name in REMAT if name != "full"])
def test_remat_changes_no_number(run: Run, remat: str) -> None:
    near(run("int8 stochastic", remat), run("int8 stochastic"))


@pytest.mark.slow
def test_offloaded_on_eight_devices(run: Run) -> None:
    near(run("int8 stochastic", "offload", devices=8), run("int8 stochastic"))


@pytest.mark.slow
@pytest.mark.parametrize("form", REPRESENTATIVE)
def test_learns_as_in_float32_exports_and_begins_the_next_stage(
    data: Path, run: Run, tmp_path: Path, form: str
) -> None:
    numbers, exact = tiny.numbers(run(form)), tiny.numbers(run("float32 float32"))
    np.testing.assert_allclose(numbers[-1]["loss"], exact[-1]["loss"], rtol=0.01)
    conversions.to_hf(run(form), tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    compute, optimizer = FORMS[form]
    config = tiny.config(
        data,
        tmp_path / "next",
        compute=compute,
        optimizer=optimizer,
        train={"steps": 1},
        init={"weights": str(run(form)), "tokenizer": None},
    )
    following = tiny.numbers(train(config, devices=jax.devices()[:1]))
    assert following[0]["loss"] < numbers[0]["loss"]
