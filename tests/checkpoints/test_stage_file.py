"""A stage's model is that of its weights where the file does not say it."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from mllm_jax.checkpoints import stage_file
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import FolderConfig
from tests.support import valid_config

MODEL = loading.build(ModelConfig, valid_config.TREE["model"])


def write(folder: Path, init: dict[str, str], model: bool = False) -> Path:
    tree = copy.deepcopy(valid_config.TREE) | {"init": init}
    if not model:
        del tree["model"]
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model folder as far as its config is read."""
    folder = tmp_path / "start"
    (folder / "params").mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    loading.dump(FolderConfig(MODEL), folder / "config.yaml")
    return folder


def test_the_model_is_that_of_the_weights(tmp_path: Path, weights: Path):
    assert stage_file.load(write(tmp_path, {"weights": str(weights)})).model == MODEL


def test_overrides_change_what_the_weights_say(tmp_path: Path, weights: Path):
    path = write(tmp_path, {"tokenizer": "words"})
    words = ["--init.weights", str(weights), "--model.connector.kind", "mlp"]
    model = stage_file.load(path, words).model
    assert model.connector is not None and model.connector.kind == "mlp"
    assert model.language == MODEL.language


def test_a_model_that_is_written_is_taken(tmp_path: Path):
    path = write(tmp_path, {"weights": "not there"}, model=True)
    assert stage_file.load(path).model == MODEL


def test_grids_are_added_to_the_model_of_the_weights(tmp_path: Path, weights: Path):
    """By a section with grids alone; or on the command line, where the section is left out."""
    path = write(tmp_path, {"weights": str(weights)})
    side = MODEL.vision.image_size if MODEL.vision is not None else 0
    sizes = [[side, 2 * side]]
    added = stage_file.load(path, [f"--model.grids.sizes={sizes}", "--model.grids.order=hw"])
    tree = yaml.safe_load(path.read_text()) | {"model": {"grids": {"order": "hw", "sizes": sizes}}}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    for model in (
        stage_file.load(path).model,
        added.model,
        stage_file.load(path, model=MODEL).model,
    ):
        assert model.grids is not None and model.grids.canvases == ((side, 2 * side),)
        assert dataclasses.replace(model, grids=None) == MODEL
    path.write_text(yaml.safe_dump(tree | {"model": {"grids": {"sizes": sizes}}}))
    with pytest.raises(ConfigError, match=r"model.grids.order: missing; it has no default"):
        stage_file.load(path)


def test_weights_that_do_not_exist_yet(tmp_path: Path):
    path = write(tmp_path, {"weights": "not there"})
    assert stage_file.load(path, model=MODEL).model == MODEL
    with pytest.raises(ConfigError) as caught:
        stage_file.load(path)
    assert str(caught.value) == (
        "model: left out, so it is read from init.weights, but not there: no such folder; give a "
        "folder of the same model by --init.weights, or write the section"
    )


@pytest.mark.parametrize("init", [{"tokenizer": "words"}, {"weights": None}, {"weights": 3}, None])
def test_no_weights_and_no_model(tmp_path: Path, init):
    with pytest.raises(ConfigError, match="model: missing; write the section"):
        stage_file.load(write(tmp_path, init))


def test_a_recipe_is_not_a_stage_file(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("stages: [align.yaml]\nout: runs\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: a recipe, where a stage file is"):
        stage_file.load(tmp_path / "recipe.yaml")


def test_a_program_gives_overrides_as_values(tmp_path: Path):
    path = write(tmp_path, {"tokenizer": "words"}, model=True)
    values = {
        "out": tmp_path / "1e-3",  # text, though YAML would read a number
        "data.languages": ("eu", "en"),
        "data.rows": 16,
        "optimizer.learning_rate": 1e-5,
        "train.keep_every": None,
        "data.pack": False,
        "init.weights": "null",
    }
    config = stage_file.load_config(path, values)
    assert (config.out, config.data.languages) == (str(tmp_path / "1e-3"), ("eu", "en"))
    assert (config.data.rows, config.data.pack) == (16, False)
    assert (config.optimizer.learning_rate, config.train.keep_every) == (1e-5, None)
    assert config.init.weights == "null"
    assert stage_file.load_config(path) == stage_file.load(path)
    with pytest.raises(ConfigError, match="unknown key; did you mean 'rows'"):
        stage_file.load_config(path, {"data.row": 16})
