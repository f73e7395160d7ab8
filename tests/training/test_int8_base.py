"""A stage whose frozen base is in int8: what it computes with, what it keeps, what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.checkpoints.frozen import frozen_leaves
from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common import int8
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.adapter import INT8
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.distributed.sharding import make_mesh
from mllm_jax.training.loop import train
from mllm_jax.training.setup import TrainSetup, make_setup
from tests.support import tiny, weights
from tests.support.resumed import resumed
from tests.training.test_lora import ADAPTER, PARTS, arrays

BLOCKED = {"width": 64}  # of the language model: whole blocks
CONVERTED = {"match": "language/layers/.*/kernel", "base": "int8"}


def model(data: Path) -> dict[str, Any]:
    tree = tiny.tree(data, data)["model"]
    return tree | {"language": tree["language"] | BLOCKED}


@pytest.fixture(scope="module")
def source(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    return weights.model_folder(data, folder, model=model(data))


def stage(data: Path, weights: Path, out: Path, adapter: dict, **sections: Any) -> Config:
    return tiny.config(
        data,
        out,
        init={"weights": str(weights), "tokenizer": None},
        train={"steps": 4, "save_every": 2, "keep": 3},
        **{"adapter": ADAPTER | adapter, "optimizer": {"parts": PARTS}, "model": model(data)}
        | sections,
    )


@pytest.fixture(scope="module")
def run(data, source, tmp_path_factory) -> Path:
    config = stage(data, source, tmp_path_factory.mktemp("int8") / "run", CONVERTED)
    return train(config, devices=jax.devices()[:1])


def test_the_base_is_kept_as_it_came(data, run):
    """To the bit and in its number formats; checkpoints hold what is trained alone."""
    stored, before = frozen_leaves(run), weights.arrays(data, model=model(data))
    assert stored.keys() == {path for path in before if not path.startswith("connector/")}
    for path, leaf in stored.items():
        assert leaf.read().tobytes() == before[path].tobytes(), path
    saved = stored_leaves(run / "checkpoints" / "4" / "params")
    assert all("/lora_" in path or path.startswith("connector/") for path in saved)


def test_losses_are_those_beside_the_dense_matrices(data, run, tmp_path):
    """A run beside the matrices that int8 is turned back into, written as float32."""
    numbers = weights.arrays(data, model=model(data))
    for path in filter(INT8.fullmatch, numbers):
        axis = 1 if numbers[path].shape[1] == 64 else numbers[path].ndim - 1
        matrix = int8.quantised(numbers[path], axis)
        numbers[path] = np.asarray(
            int8.dense(int8.Int8Matrix(*map(jnp.asarray, matrix)), "float32")
        )
    folder = weights.model_folder(data, tmp_path / "dense", model=model(data))
    shutil.rmtree(folder / "params")
    weights.save(numbers, folder)
    config = stage(data, folder, tmp_path / "run", CONVERTED | {"base": "compute"})
    found, expected = (tiny.numbers(x) for x in (run, train(config, devices=jax.devices()[:1])))
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm", "update_norm", "loss/stream/text"):
            if name in one:
                np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=name)


def test_resumed_equals_straight_to_the_bit(run, tmp_path):
    again = resumed(run, tmp_path)
    assert tiny.numbers(again) == tiny.numbers(run)
    first, second = (stored_leaves(x / "checkpoints" / "4" / "params") for x in (run, again))
    for path, leaf in first.items():
        np.testing.assert_array_equal(second[path].read(), leaf.read(), err_msg=path)


def test_adapters_are_merged_into_the_base_as_it_came(data, run, source, tmp_path):
    """In the run as a model, in an export, and in a PEFT folder beside its base, all the same."""
    config = loading.load(Config, run / "config.yaml")
    assert config.adapter is not None
    saved = {
        path: np.asarray(leaf.read(), np.float32)
        for path, leaf in stored_leaves(run / "checkpoints" / "4" / "params").items()
    }
    before, merged = weights.arrays(data, model=model(data)), arrays(run)
    up = saved["language/layers/mlp/up/lora_a"] @ saved["language/layers/mlp/up/lora_b"]
    expected = before["language/layers/mlp/up/kernel"].astype(np.float32)
    np.testing.assert_allclose(
        merged["language/layers/mlp/up/kernel"], expected + config.adapter.scale * up, atol=1e-6
    )
    conversions.to_hf(run, tmp_path / "hf")
    conversions.to_peft(run, tmp_path / "peft")
    for folder in (tmp_path / "hf", tmp_path / "peft"):
        for path, x in arrays(folder).items():
            np.testing.assert_array_equal(x, merged[path], err_msg=path)


# ---------------------------------------------------------------------------------------- bad input


def planned(config: Config, fsdp: int = 1) -> TrainSetup:
    mesh = make_mesh((1, fsdp, 1), jax.devices()[:fsdp])
    return make_setup(
        config.model, config.compute, config.optimizer, mesh, 4, adapter=config.adapter
    )


def refusal(config: Config, fsdp: int = 1) -> str:
    with pytest.raises(ConfigError) as error:
        planned(config, fsdp)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_width_of_no_whole_blocks_is_refused(data, source, tmp_path):
    config = stage(data, source, tmp_path / "run", CONVERTED)
    assert refusal(config, fsdp=2) == (
        "adapter.base=int8: model.language.width=64 must be a multiple of 128 (blocks of 64 x "
        "mesh.fsdp=2); choose a smaller mesh.fsdp or adapter.base=compute"
    )
    narrow = stage(data, source, tmp_path / "run", CONVERTED, model=tiny.tree(data, data)["model"])
    assert "model.language.width=32 must be a multiple of 64 (" in refusal(narrow)


def test_a_base_that_is_trained_in_part_is_refused(data, source, tmp_path):
    parts = {
        "moving": {"match": "language/layers/mlp/.*"},
        "rest": {"match": "vision/.*|connector/.*|language/(?!layers/mlp/).*", "train": False},
    }
    adapter = CONVERTED | {"match": "language/layers/attention/.*/kernel"}
    config = stage(data, source, tmp_path / "run", adapter, optimizer={"parts": parts})
    assert refusal(config) == (
        "adapter.base=int8 is for frozen matrices, but optimizer.parts.moving trains "
        "language/layers/mlp/down/kernel, language/layers/mlp/gate/kernel, "
        "language/layers/mlp/up/kernel; freeze it by train: false, or set adapter.base to compute"
    )


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"base": "int8"}, "adapter.match: missing; it has no default"),
        ({"match": ".*", "base": "int4"}, "adapter.base: expected compute or int8, got 'int4'"),
    ],
)
def test_the_section_needs_adapters_and_one_of_two_formats(data, tmp_path, adapter, message):
    with pytest.raises(ConfigError) as error:
        tiny.config(data, tmp_path / "run", adapter=adapter)
    assert str(error.value) == message


def test_devices_hold_a_byte_and_a_scale_for_64(data, source, tmp_path):
    made = planned(stage(data, source, tmp_path / "run", CONVERTED))
    frozen = made.frozen
    for path in filter(INT8.fullmatch, made.of_model):
        scales = frozen[path.removesuffix("kernel") + "kernel_scale"]
        assert frozen[path].dtype == np.int8 and scales.dtype == jnp.bfloat16
        assert frozen[path].size == 64 * scales.size
    assert (
        made.of_model.keys() == conversions.abstract(made.model.config, made.model.adapter).keys()
    )
