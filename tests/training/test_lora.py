"""A stage with adapters: what it writes, resumed = straight, and the model that it leaves."""

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.checkpoints.frozen import frozen_leaves
from mllm_jax.checkpoints.manifest import DamagedCheckpoint
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.distributed.sharding import make_mesh
from mllm_jax.models import mllm
from mllm_jax.training import setup
from mllm_jax.training.loop import train
from tests.support import tiny, weights
from tests.support.resumed import resumed

# the connector is trained itself, as in LLaVA's LoRA recipe
PARTS = {
    "connector": {"match": "connector/.*", "learning_rate": 1e-3},
    "rest": {"match": "(vision|language)/.*", "train": False},
}
ADAPTER = {
    "match": "(vision|language)/layers/.*/kernel",
    "rank": 4,
    "alpha": 8,
    "dropout": 0.2,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def source(data, tmp_path_factory) -> Path:
    """A model in three number formats."""
    return weights.model_folder(data, tmp_path_factory.mktemp("source") / "model")


def stage(data: Path, source: Path, out: Path, **sections) -> Config:
    sections = {"adapter": ADAPTER, "optimizer": {"parts": PARTS}} | sections
    return tiny.config(
        data,
        out,
        init={"weights": str(source), "tokenizer": None},
        train={"steps": 4, "save_every": 2, "keep": 3},
        **sections,
    )


@pytest.fixture(scope="module", params=["lora", pytest.param("dora", marks=pytest.mark.slow)])
def run(request, data, source, tmp_path_factory) -> Path:
    adapter = ADAPTER | {"dora": request.param == "dora"}
    config = stage(data, source, tmp_path_factory.mktemp("lora") / "run", adapter=adapter)
    return train(config, devices=jax.devices()[:1])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    opened = open_model(folder)
    leaves = opened.leaves(conversions.abstract(opened.config.model))
    return {path: leaf.read() for path, leaf in leaves.items()}


def test_checkpoints_hold_adapters_and_trained_parts_the_base_is_written_once(data, run):
    saved = stored_leaves(run / "checkpoints" / "4" / "params")
    assert all("/lora_" in path or path.startswith("connector/") for path in saved)
    assert sum(path.endswith("/lora_a") for path in saved) == 7 + 6
    assert all(np.any(leaf.read()) for path, leaf in saved.items())
    stored, before = frozen_leaves(run), weights.arrays(data)
    assert stored.keys() == {path for path in before if not path.startswith("connector/")}
    for path, leaf in stored.items():
        assert leaf.read().tobytes() == before[path].tobytes(), path
    line = tiny.numbers(run)[-1]
    assert line["learning_rate/adapter"] == pytest.approx(10 * line["learning_rate/connector"])
    assert loading.load(Config, run / "config.yaml").adapter is not None


def test_resumed_equals_straight_to_the_bit(run, tmp_path):
    """Dropout too: it follows from the seed, the step and the data."""
    again = resumed(run, tmp_path)
    assert tiny.numbers(again) == tiny.numbers(run)
    first, second = (stored_leaves(x / "checkpoints" / "4" / "params") for x in (run, again))
    for path, leaf in first.items():
        np.testing.assert_array_equal(second[path].read(), leaf.read(), err_msg=path)


def test_the_run_is_a_model_whose_matrices_have_the_adapters_merged(data, run, tmp_path):
    """The logits of the adapters as they are trained, within 1e-5; an export has the same bytes."""
    config = loading.load(Config, run / "config.yaml")
    loader = Loader(config.data, config.model, load_tokenizer(run / "model"), config.seed)
    inputs = next(loader.iterate(0, 1)).batch.inputs
    stored = frozen_leaves(run) | stored_leaves(run / "checkpoints" / "4" / "params")
    held = {path: jnp.asarray(leaf.read().astype(np.float32)) for path, leaf in stored.items()}

    def logits(params, adapter):
        model = mllm.build(config.model, config.compute, adapter=adapter)
        hidden = jax.jit(functools.partial(mllm.hidden, model))(params, inputs)
        return np.asarray(mllm.logits(hidden, mllm.head(params)))

    expected = logits(held, config.adapter)
    merged = arrays(run)
    assert merged["language/layers/attention/q/kernel"].dtype == np.float32
    found = logits({path: jnp.asarray(x, jnp.float32) for path, x in merged.items()}, None)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    base = logits(
        {path: jnp.asarray(x, jnp.float32) for path, x in weights.arrays(data).items()}, None
    )
    assert np.abs(base - expected).max() > 100 * np.abs(found - expected).max()
    conversions.to_hf(run, tmp_path / "hf")
    for path, x in arrays(tmp_path / "hf").items():
        np.testing.assert_array_equal(x, merged[path], err_msg=path)


def test_its_peft_folder_beside_its_base_is_the_same_model(run, tmp_path):
    """Adapters and the trained connector; the base is found by the name that the run has of it."""
    conversions.to_peft(run, tmp_path / "peft")
    merged = arrays(run)
    for path, x in arrays(tmp_path / "peft").items():
        np.testing.assert_array_equal(x, merged[path], err_msg=path)
    conversions.from_peft(tmp_path / "peft", tmp_path / "model")
    for path, x in arrays(tmp_path / "model").items():
        np.testing.assert_array_equal(x, merged[path], err_msg=path)


def test_a_model_without_adapters_has_no_peft_folder(source, tmp_path):
    with pytest.raises(ConfigError, match="is not a run with adapters; export a model by"):
        conversions.to_peft(source, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_another_base_is_refused(run, data, tmp_path):
    """The frozen parameters are those that the adapters were trained beside."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    file = next((other / "frozen").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpoint) as error:
        arrays(other)
    assert "\n" not in str(error.value)
    assert "frozen/model.safetensors" in str(error.value)


def planned(config: Config) -> setup.TrainSetup:
    mesh = make_mesh(devices=jax.devices()[:1])
    return setup.make_setup(
        config.model, config.compute, config.optimizer, mesh, 4, adapter=config.adapter
    )


def test_an_adapter_of_what_is_trained_itself_is_refused(data, source, tmp_path):
    parts = {
        "moving": {"match": "(connector|language)/.*"},
        "tower": {"match": "vision/.*", "train": False},
    }
    config = stage(data, source, tmp_path / "run", optimizer={"parts": parts})
    with pytest.raises(ConfigError) as error:
        planned(config)
    assert "which optimizer.parts.moving trains; freeze it by train: false" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_adapters_part_needs_no_rule_and_its_name_is_taken(data, source, tmp_path):
    frozen = {"all": {"match": ".*", "train": False}}
    made = planned(stage(data, source, tmp_path / "run", optimizer={"parts": frozen}))
    assert all("/lora_" in path for path in made.abstract.trainable)
    parts = {"adapter": {"match": ".*", "train": False}}
    with pytest.raises(ConfigError, match=r"optimizer\.parts\.adapter: the name is taken"):
        stage(data, source, tmp_path / "run", optimizer={"parts": parts})
