"""Frozen parameters of real stages: out as they went in, to the bit, wherever they come out."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import tarfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints import frozen, manifest
from mllm_jax.checkpoints.frozen import FrozenParams, frozen_leaves
from mllm_jax.checkpoints.manifest import DamagedCheckpoint
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.data.mixture.order import VERSION as ORDER
from mllm_jax.distributed import sharding
from mllm_jax.training import restore, setup
from mllm_jax.training.loop import train
from tests.support import tiny, weights

PARTS = {
    "connector": {"match": "connector/.*"},
    "rest": {"match": "(vision|language)/.*", "train": False},
}
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
FILES = "model.safetensors"


@pytest.fixture(scope="module")
def source(data, tmp_path_factory) -> Path:
    return weights.model_folder(data, tmp_path_factory.mktemp("source") / "model")


def align(data: Path, source: Path, out: Path, **train) -> Config:
    """A bfloat16 stage that trains the connector."""
    return tiny.config(
        data,
        out,
        init={"weights": str(source), "tokenizer": None},
        compute={"compute": "bfloat16"},
        optimizer={"parts": PARTS},
        mesh=MESH,
        train={"steps": 4, "save_every": 1, **train},
    )


@pytest.fixture(scope="module")
def run(data, source, tmp_path_factory) -> Path:
    """Four steps on eight devices, saved at each of them."""
    return train(align(data, source, tmp_path_factory.mktemp("frozen") / "run"))


def leaves_of(folder: Path) -> dict[str, np.ndarray]:
    opened = open_model(folder)
    leaves = opened.leaves(conversions.abstract(opened.config.model))
    return {path: leaf.read() for path, leaf in leaves.items()}


def assert_frozen(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for path, x in expected.items():
        same = (found[path].dtype, found[path].tobytes()) == (x.dtype, x.tobytes())
        assert same != path.startswith("connector/"), path


def test_checkpoints_and_the_run_hold_what_went_in(data, run):
    for folder in (run, run / "checkpoints" / "3"):
        assert_frozen(leaves_of(folder), weights.arrays(data))


def test_an_export_holds_what_went_in(data, run, tmp_path):
    conversions.to_hf(run, tmp_path / "hf")
    assert_frozen(leaves_of(tmp_path / "hf"), weights.arrays(data))


def test_a_later_stage_trains_what_went_in(data, run, tmp_path):
    """Its masters are float32: the numbers of each of the three formats, none of them rounded."""
    config = tiny.config(
        data,
        tmp_path / "full",
        init={"weights": str(run), "tokenizer": None},
        compute={"compute": "bfloat16"},
    )
    first = restore.first_params(planned(config), open_model(run), config)
    assert not first.frozen
    for path, x in weights.arrays(data).items():
        if not path.startswith("connector/"):
            assert np.array_equal(first.trainable[path], x.astype(np.float32)), path
            assert first.trainable[path].dtype == np.float32


@pytest.mark.slow
def test_a_later_stage_that_freezes_them_too_copies_what_went_in(data, run, tmp_path):
    config = align(data, run, tmp_path / "again")
    first = restore.first_params(planned(config), open_model(run), config)
    assert first.trainable.keys() | first.frozen.keys() == weights.arrays(data).keys()
    for path, leaf in first.frozen.items():
        x = weights.arrays(data)[path]
        assert (leaf.dtype, leaf.read().tobytes()) == (x.dtype, x.tobytes()), path


def planned(config: Config) -> setup.TrainSetup:
    mesh = sharding.make_mesh(config.mesh.axes, jax.devices()[: 8 if config.mesh.fsdp > 1 else 1])
    return setup.make_setup(config.model, config.compute, config.optimizer, mesh, 4)


def test_a_save_writes_what_is_trained_alone(run):
    """The frozen ones are written once, and no checkpoint that is deleted takes them along."""
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "4"]
    file = (run / "frozen" / FILES).stat()
    for step in ("3", "4"):
        paths = stored_leaves(run / "checkpoints" / step / "params")
        assert paths and all(path.startswith("connector/") for path in paths)
        saved = manifest.read(run / "checkpoints" / step)["frozen"]
        assert {name: size for name, (size, _) in saved.items()} == {FILES: file.st_size}
    seals = (run / "checkpoints").glob("*/seal.json")
    assert file.st_mtime < min(path.stat().st_mtime for path in seals)


@pytest.fixture
def copied(data, source, run, tmp_path) -> Config:
    """The run on another machine, killed after its third step."""
    shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "4")
    return align(data, source, tmp_path / "copy")


def test_a_resumed_run_equals_an_undisturbed_one(run, copied):
    train(copied, resume=True)
    assert tiny.numbers(Path(copied.out)) == tiny.numbers(run)
    found, expected = leaves_of(Path(copied.out)), leaves_of(run)
    for path, x in expected.items():
        assert found[path].tobytes() == x.tobytes(), path


def test_a_flipped_byte_is_noticed_and_written_again_on_request(data, copied, capsys):
    copied = dataclasses.replace(copied, train=dataclasses.replace(copied.train, stop_at=3))
    out, path = Path(copied.out), Path(copied.out) / "frozen" / FILES
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    words = f"{path}: holds other bytes than were saved"
    with pytest.raises(DamagedCheckpoint, match=rf"frozen parameters are damaged: {words}.*again"):
        train(copied, resume=True)
    with pytest.raises(DamagedCheckpoint, match=words):
        leaves_of(out)
    assert (out / "checkpoints" / "3").is_dir()
    training = dataclasses.replace(copied.train, on_damage="previous")
    train(dataclasses.replace(copied, train=training), resume=True)
    assert words in capsys.readouterr().err
    assert path.read_bytes() == content
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["3"]
    assert_frozen(leaves_of(out), weights.arrays(data))


def test_a_damaged_checkpoint_is_not_opened(copied):
    files = (Path(copied.out) / "checkpoints" / "3" / "params").rglob("d/*")
    path = max(files, key=lambda file: file.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedCheckpoint, match=f"{path}: holds other bytes"):
        leaves_of(Path(copied.out))


def test_another_source_does_not_take_the_place_of_a_lost_file(data, source, copied, tmp_path):
    shutil.rmtree(Path(copied.out) / "frozen")
    shutil.copytree(source, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "params")
    changed = weights.arrays(data)
    changed["vision/post_norm/bias"] = changed["vision/post_norm/bias"] + np.float32(1)
    weights.save(changed, tmp_path / "other")
    init = dataclasses.replace(copied.init, weights=str(tmp_path / "other"))
    training = dataclasses.replace(copied.train, on_damage="previous")
    with pytest.raises(DamagedCheckpoint, match="no longer holds what the run began with"):
        train(dataclasses.replace(copied, init=init, train=training), resume=True)
    assert not (Path(copied.out) / "frozen").exists()
    assert not list(Path(copied.out).glob("*.partial"))


def killed_while_writing(config: Config) -> None:
    """A run, in a process of its own, that is killed when half of a file is on the disk."""

    def half(folder: Path, *_) -> None:
        (folder / FILES).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    frozen.write_tensors = half
    train(config)


def test_a_run_killed_while_it_writes_them_begins_again(data, source, run, tmp_path):
    config = align(data, source, tmp_path / "run")
    process = multiprocessing.get_context("forkserver").Process(
        target=killed_while_writing, args=(config,)
    )
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    out = Path(config.out)
    assert (out / "frozen.partial" / FILES).read_bytes() == b"half"
    assert not (out / "frozen").exists() and (out / "config.yaml").is_file()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=2))
    train(config, resume="auto")
    assert_frozen(leaves_of(out), weights.arrays(data))
    assert (out / "frozen" / FILES).read_bytes() == (run / "frozen" / FILES).read_bytes()
    assert not (out / "frozen.partial").exists()
    assert tiny.numbers(out) == tiny.numbers(run)[:2]


def test_random_frozen_parameters_are_what_devices_compute_with(data, tmp_path):
    """No weights: they are drawn in float32, once, whatever the stage computes in."""
    config = dataclasses.replace(
        align(data, tmp_path, tmp_path / "run"), init=tiny.config(data, tmp_path).init
    )
    made = planned(config)
    first = restore.first_params(made, None, config)
    now = restore.first_state(made, first, FrozenParams(tmp_path))
    held = jax.tree.map(np.asarray, now.frozen)
    stored = {path: leaf.read() for path, leaf in frozen_leaves(tmp_path).items()}
    assert stored.keys() == held.keys()
    for path, x in stored.items():
        assert x.dtype == np.float32
        assert np.array_equal(held[path], x.astype(ml_dtypes.bfloat16)), path
    rounded = [path for path, x in stored.items() if not np.array_equal(held[path], x)]
    assert "language/embedding" in rounded


def test_a_run_of_before_opens_exports_and_goes_on(data, source, tmp_path):
    """Its checkpoint, saved at step 2 by the version of 2026-11-25, holds all parameters.

    The frozen ones are in bfloat16 there, and stay so: they are all that this run has.
    """
    with tarfile.open(Path(__file__).parents[1] / "checkpoints" / "run_of_before.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    out = tmp_path / "run"
    text = (out / "config.yaml").read_text()
    text = text.replace("HERE/DATA", str(data)).replace("HERE/base", str(source))
    (out / "config.yaml").write_text(text.replace("HERE/align", str(out)))
    report = read_json(out / "data.json")  # batches were planned in another order then
    write_json(out / "data.json", {**report, "order": ORDER})
    before = leaves_of(out)
    assert {str(x.dtype) for p, x in before.items() if p[:3] != "con"} == {"bfloat16"}
    conversions.to_hf(out, tmp_path / "hf")
    exported = leaves_of(tmp_path / "hf")
    for path, x in before.items():
        assert (exported[path].dtype, exported[path].tobytes()) == (x.dtype, x.tobytes()), path
    config = align(data, source, out, save_every=2)
    train(dataclasses.replace(config, mesh=tiny.config(data, out).mesh), True, jax.devices()[:1])
    assert [row["step"] for row in tiny.numbers(out)] == [0, 1, 2, 3]
    assert_frozen(leaves_of(out), before)
    assert leaves_of(out / "checkpoints" / "2").keys() == before.keys()
    assert set(manifest.read(out / "checkpoints" / "4")["frozen"]) == {FILES}
