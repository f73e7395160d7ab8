"""open_model: every kind of folder gives the same parameters; what is no model is refused."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.conversion import conversions
from mllm_jax.distributed.sharding import shardings
from mllm_jax.models.axes import logical_axes


@pytest.fixture(scope="module")
def model(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "linear"
    conversions.from_hf(oracle / "llava_linear", out)
    return out


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose second checkpoint holds the parameters doubled."""
    out = tmp_path_factory.mktemp("runs") / "run"
    (out / "model").mkdir(parents=True)
    hf_files.copy_files(model, out / "model")
    opened = open_model(model)
    loading.dump(opened.config, out / "model" / "config.yaml")
    params = opened.load(conversions.abstract(opened.config.model))
    checkpoints = Checkpoints(out, Keep(2))
    for step, scale in ((5, 1.0), (10, 2.0)):
        scaled = jax.tree.map(lambda x, scale=scale: x * scale, params)
        checkpoints.save(step, scaled, {"count": jnp.int32(step)}, {})
    checkpoints.close()
    return out


def same(a, b, scale: float = 1.0) -> None:
    assert a.keys() == b.keys()
    for path in a:
        assert np.array_equal(
            np.asarray(a[path]) * np.asarray(scale, a[path].dtype), np.asarray(b[path])
        ), path


def test_all_three_kinds_agree(oracle: Path, model: Path, run: Path) -> None:
    sources = [open_model(path) for path in (oracle / "llava_linear", model, run)]
    configs = [source.config.model for source in sources]
    assert configs[0] == configs[1] == configs[2]
    hf, ours, last = (source.load(conversions.abstract(configs[0])) for source in sources)
    same(hf, ours)
    same(ours, last, 2.0)
    for source in sources:
        assert (source.files / "tokenizer.json").is_file()
        assert (source.files / "chat_template.jinja").is_file()
        assert source.image_fit == "crop"
        assert source.left_out == []


@pytest.mark.parametrize("kind", ["hf", "model"])
def test_load_places_and_casts(kind: str, oracle: Path, model: Path, make_mesh) -> None:
    source = open_model(oracle / "llava_linear" if kind == "hf" else model)
    mesh = make_mesh(fsdp=2, tensor=2)
    shapes = conversions.abstract(source.config.model)
    where = shardings(mesh, logical_axes(shapes))
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s), shapes, where
    )
    with jax.set_mesh(mesh):
        placed = source.load(wanted)
    for path, x in placed.items():
        assert (x.sharding, x.dtype) == (where[path], jnp.bfloat16), path
        assert isinstance(x.sharding, NamedSharding)
    whole = source.load(shapes)
    same(jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), whole), placed)


@pytest.mark.parametrize("kind", ["hf", "model"])
def test_a_part_can_stay_unread(kind: str, oracle: Path, model: Path) -> None:
    source = open_model(oracle / "llava_linear" if kind == "hf" else model)
    every = conversions.abstract(source.config.model)
    shapes = {path: x for path, x in every.items() if not path.startswith("connector/")}
    with pytest.raises(ConfigError, match="extra 2"):
        source.load(shapes)
    assert source.load(shapes, unread="connector/.*").keys() == shapes.keys()


def test_a_recipes_folder_names_its_stages(tmp_path):
    for name, step in (("align", 4), ("instruct", 8), ("begun", None)):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.yaml").write_text("")
        if step is not None:
            checkpoint = tmp_path / name / "checkpoints" / str(step)
            checkpoint.mkdir(parents=True)
            (checkpoint / manifest.FILE).write_text("{}")
            os.utime(checkpoint.parent, (step, step))
    with pytest.raises(ConfigError, match="not a model, but its stages are: give ") as error:
        open_model(tmp_path)
    assert str(error.value).endswith(f"give {tmp_path / 'instruct'} or {tmp_path / 'align'}")


def test_what_is_no_model(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        open_model(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        open_model(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"not a model: expected config\.yaml"):
        open_model(tmp_path)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.yaml").write_text(
        (run / "model" / "config.yaml").read_text()
    )
    with pytest.raises(ConfigError, match="without a finished checkpoint"):
        open_model(tmp_path / "run")


def test_a_checkpoint_of_another_architecture(model: Path, tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(model)
    source = open_model(tmp_path / "x")
    shapes = conversions.abstract(source.config.model)
    shapes["language/layers/mlp/up/kernel"] = jax.ShapeDtypeStruct((3, 64, 161), jnp.float32)
    with pytest.raises(
        ConfigError, match=r"another architecture: misshapen 1 \(language/layers/mlp/up/kernel is"
    ):
        source.load(shapes)
