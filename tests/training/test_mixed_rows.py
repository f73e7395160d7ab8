"""Rows of images in tiles, padded ones and text, SigLIP's tower, LoRA with dropout: all at once."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.config.stage import Config
from mllm_jax.training.loop import train
from tests.support import tiny
from tests.support.resumed import resumed
from tests.training.test_anyres import GRIDS, LENGTH, SLOTS
from tests.training.test_lora import ADAPTER, PARTS
from tests.training.test_pooled_siglip import TOWER


def stage(data: Path, out: Path, **sections: Any) -> Config:
    model = tiny.tree(data, out)["model"] | {"vision": TOWER, "grids": GRIDS}
    return tiny.config(
        data,
        out,
        model=model,
        data={"length": LENGTH, "image_slots": SLOTS},
        adapter=ADAPTER,
        optimizer={"parts": PARTS},
        train={"steps": 4, "save_every": 2, "keep": 3},
        **sections,
    )


def trained(run: Path) -> dict[str, np.ndarray]:
    leaves = stored_leaves(run / "checkpoints" / "4" / "params")
    return {path: np.asarray(leaf.read()) for path, leaf in leaves.items()}


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    config = stage(data, tmp_path_factory.mktemp("mixed") / "run")
    return train(config, devices=jax.devices()[:1])


def test_every_kind_of_row_and_adapter_is_there(straight):
    lines = tiny.numbers(straight)
    assert all(line["finite"] for line in lines)
    assert all(0 < line["unused_slot_share"] < 1 for line in lines)
    names = {name for line in lines for name in line}
    assert {"loss/stream/eu", "loss/stream/en", "loss/stream/text"} <= names
    moved = [path for path, x in trained(straight).items() if path.endswith("lora_b") and x.any()]
    assert {path.partition("/")[0] for path in moved} == {"vision", "language"}
    assert trained(straight)["connector/newline"].any()


def test_resumed_equals_straight_to_the_bit(straight, tmp_path):
    again = resumed(straight, tmp_path)
    assert tiny.numbers(again) == tiny.numbers(straight)
    expected = trained(straight)
    for path, x in trained(again).items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)


@pytest.mark.slow
def test_eight_devices_equal_one(data, straight, tmp_path):
    run = train(stage(data, tmp_path / "run", mesh={"data": 2, "fsdp": 2, "tensor": 2}))
    one, eight = tiny.numbers(straight), tiny.numbers(run)
    for name in ("loss", "grad_norm", "loss/stream/eu", "loss/stream/text", "unused_slot_share"):
        pairs = [(a[name], b[name]) for a, b in zip(one, eight, strict=True) if name in a]
        assert pairs
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-4, err_msg=name)
