"""Which files hold the weights of a folder; two sets of them, paths that lead out of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_jax.checkpoints.hf.tensor_files import INDEX, SINGLE, write_tensors
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.common.errors import ConfigError
from tests.support.torch_files import PROTO, STOP, state_dict, storage, tensor, write_file

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def write(folder: Path, value: float = 1.0, shard_bytes: int = 20) -> Path:
    """Two tensors of the same value, in two shards."""
    folder.mkdir(exist_ok=True)
    tensors = {name: np.full(5, value, np.float32) for name in "ab"}
    leaves = {name: Leaf(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    write_tensors(folder, leaves, iter(tensors.items()), shard_bytes)
    return folder


def change_map(folder: Path, **entries: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    weight_map = index["weight_map"] | entries
    index["weight_map"] = {name: x for name, x in weight_map.items() if x != "gone"}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = write(tmp_path / "model")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [FIRST, SECOND]
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"c": FIRST}, r"they lack \['c'\]"),
        ({"a": SECOND, "b": FIRST}, rf"{FIRST} holds 'a', listed as in {SECOND}"),
        ({"b": "gone", "a": SECOND}, rf"does not list \['{FIRST}'\]"),
        ({"b": None}, "'b'=None; expected the name of a .safetensors file"),
        ({"b": 2}, "'b'=2; expected the name"),
        ({"b": [SECOND]}, "expected the name"),
        ({"b": f"../{SECOND}"}, "expected the name"),
        ({"b": f"/tmp/{SECOND}"}, "expected the name"),
        ({"b": ".."}, "expected the name"),
        ({"b": ""}, "expected the name"),
        ({"b": "config.json"}, "expected the name"),
        ({"b": "model-00009-of-00002.safetensors"}, "does not list"),
    ],
)
def test_false_indexes(shards: Path, entries: dict[str, Any], message: str) -> None:
    change_map(shards, **entries)
    with pytest.raises(ConfigError, match=message):
        stored_tensors(shards)


def test_a_tensor_that_no_index_lists(shards: Path) -> None:
    change_map(shards, b="gone")
    (shards / SECOND).unlink()
    shutil.copyfile(write(shards.parent / "one", shard_bytes=10**6) / SINGLE, shards / FIRST)
    with pytest.raises(ConfigError, match=rf"{FIRST} holds 'b', which is not listed"):
        stored_tensors(shards)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_index_without_a_map(shards: Path, weight_map: Any) -> None:
    (shards / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"index\.json: weight_map"):
        stored_tensors(shards)


def test_missing_shard(shards: Path) -> None:
    (shards / FIRST).unlink()
    with pytest.raises(ConfigError, match=f"{FIRST}: no such file"):
        stored_tensors(shards)


def test_two_sets_of_weights_are_refused(shards: Path) -> None:
    """transformers reads the single file, whatever an index beside it says."""
    single = write(shards.parent / "one", 2.0, shard_bytes=10**6) / SINGLE
    shutil.copyfile(single, shards / SINGLE)
    with pytest.raises(ConfigError, match=rf"holds {SINGLE} and {INDEX}, two sets of weights"):
        stored_tensors(shards)
    (shards / INDEX).unlink()
    with pytest.raises(ConfigError, match=rf"holds {SINGLE} and {FIRST}, two sets of weights"):
        stored_tensors(shards)
    (shards / SINGLE).unlink()
    with pytest.raises(ConfigError, match=rf"holds {FIRST} without {INDEX}"):
        stored_tensors(shards)


def test_stray_shards_are_named(shards: Path) -> None:
    shutil.copyfile(shards / FIRST, shards / "model-00001-of-00009.safetensors")
    with pytest.raises(ConfigError, match=r"does not list \['model-00001-of-00009"):
        stored_tensors(shards)


def test_an_adapter_beside_the_weights_is_refused(shards: Path) -> None:
    (shards / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_config\.json is an adapter"):
        stored_tensors(shards)


BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
BIN_FIRST, BIN_SECOND = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))


def write_bin(path: Path, *names: str) -> None:
    """A file of torch.save: tensors of these names, [0, 0, 0]."""
    one = {name: tensor(storage(count=3), shape=(3,), strides=(1,)) for name in names}
    write_file(path, PROTO + state_dict(**one) + STOP, {"0": bytes(12)})


@pytest.fixture
def bin_shards(tmp_path: Path) -> Path:
    write_bin(tmp_path / BIN_FIRST, "a")
    write_bin(tmp_path / BIN_SECOND, "b", "c")
    weight_map = {"a": BIN_FIRST, "b": BIN_SECOND, "c": BIN_SECOND}
    (tmp_path / BIN_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_one_file_of_torch(tmp_path: Path) -> None:
    write_bin(tmp_path / BIN, "a")
    assert stored_tensors(tmp_path)["a"].read().tolist() == [0, 0, 0]
    (tmp_path / "training_args.bin").write_bytes(b"other files are left alone")
    assert stored_tensors(tmp_path).keys() == {"a"}


def test_shards_of_torch(bin_shards: Path) -> None:
    found = stored_tensors(bin_shards)
    assert {name: x.file.name for name, x in found.items()} == {
        "a": BIN_FIRST,
        "b": BIN_SECOND,
        "c": BIN_SECOND,
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"d": BIN_FIRST}, r"they lack \['d'\]"),
        ({"b": BIN_FIRST}, rf"{BIN_SECOND} holds 'b', listed as in {BIN_FIRST}"),
        ({"a": f"../{BIN_FIRST}"}, "expected the name of a .bin file in the folder"),
        ({"a": f"/tmp/{BIN_FIRST}"}, "expected the name of a .bin file in the folder"),
        ({"a": FIRST}, "expected the name of a .bin file in the folder"),
        ({"a": BIN_SECOND}, rf"does not list \['{BIN_FIRST}'\]"),
    ],
)
def test_false_indexes_of_torch(bin_shards: Path, entries: dict[str, Any], message: str) -> None:
    index = json.loads((bin_shards / BIN_INDEX).read_text())
    index["weight_map"] |= entries
    (bin_shards / BIN_INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=message):
        stored_tensors(bin_shards)


def test_two_sets_of_torch_are_refused(bin_shards: Path) -> None:
    write_bin(bin_shards / BIN, "a")
    with pytest.raises(ConfigError, match=rf"holds {BIN} and {BIN_INDEX}, two sets of weights"):
        stored_tensors(bin_shards)
    (bin_shards / BIN).unlink()
    (bin_shards / BIN_INDEX).unlink()
    with pytest.raises(ConfigError, match=rf"holds {BIN_FIRST} without {BIN_INDEX}"):
        stored_tensors(bin_shards)


def test_safetensors_come_first(bin_shards: Path) -> None:
    """As transformers looks for them; a file that is not read may be anything."""
    (bin_shards / BIN).write_bytes(b"")
    assert stored_tensors(write(bin_shards))["a"].format == "F32"
    assert stored_tensors(bin_shards)["a"].file.name == FIRST
    (bin_shards / INDEX).unlink()
    with pytest.raises(ConfigError, match=rf"holds {FIRST} without {INDEX}"):
        stored_tensors(bin_shards)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights: none of model\.safetensors, "):
        stored_tensors(tmp_path)


def test_links_of_the_hubs_cache(shards: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(shards.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert stored_tensors(snapshot)["b"].read().tolist() == [1.0] * 5
    (tmp_path / "link").symlink_to(snapshot)
    assert stored_tensors(tmp_path / "link").keys() == {"a", "b"}


def test_links_out_of_the_folder_are_refused(shards: Path, tmp_path: Path) -> None:
    (shards / SECOND).rename(tmp_path / SECOND)
    (shards / SECOND).symlink_to(tmp_path / SECOND)
    with pytest.raises(ConfigError, match=rf"{SECOND}: links to a file outside of its folder"):
        stored_tensors(shards)
