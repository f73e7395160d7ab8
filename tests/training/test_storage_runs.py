"""Whole runs with every way to store moments and parameters: loss, resume, export, next stage."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax.conversion import conversions
from mllm_jax.training.loop import train
from tests.support import tiny
from tests.support.resumed import resumed

FORMS = {
    "int8": ({}, {"moments": "int8"}),
    "stochastic": (
        {"parameters": "bfloat16", "gradients": "bfloat16"},
        {"moments": "int8", "rounding": "stochastic"},
    ),
    "kahan": ({"parameters": "bfloat16"}, {"moments": "bfloat16", "rounding": "kahan"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.make_data(folder)
    return folder


def run(data: Path, out: Path, compute: dict, optimizer: dict, **sections: dict) -> list[dict]:
    sections = {"train": {"steps": 4, "save_every": 2, "keep": 2}} | sections
    config = tiny.config(data, out, compute=compute, optimizer=optimizer, **sections)
    train(config, devices=jax.devices()[:1])
    return tiny.numbers(out)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_run(data: Path, tmp_path: Path, form: str) -> None:
    exact = run(data, tmp_path / "float32", {}, {})
    numbers = run(data, tmp_path / "run", *FORMS[form])
    np.testing.assert_allclose(numbers[-1]["loss"], exact[-1]["loss"], rtol=0.01)
    again = resumed(tmp_path / "run", tmp_path / "again")
    assert tiny.numbers(again) == numbers
    conversions.to_hf(tmp_path / "run", tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    following = run(
        data,
        tmp_path / "next",
        *FORMS[form],
        init={"weights": str(tmp_path / "run"), "tokenizer": None},
    )
    assert following[0]["loss"] < numbers[0]["loss"]
