"""Our safetensors against the safetensors library; files that are torn, missing or none."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.tensor_files import INDEX, SINGLE, stored_tensors, write_tensors
from mllm_jax.errors import ConfigError


def unread() -> np.ndarray:
    raise AssertionError("only shape and number format are looked at")


def write(folder: Path, tensors: dict[str, np.ndarray], **options: int) -> None:
    leaves = {name: Leaf(x.shape, x.dtype, unread) for name, x in tensors.items()}
    write_tensors(folder, leaves, reversed(tensors.items()), **options)


def numbers() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "a": random.standard_normal((3, 5), np.float32),
        "b": random.standard_normal((7,), np.float32).astype(ml_dtypes.bfloat16),
        "c": random.standard_normal((2, 2, 2), np.float32).astype(np.float16),
        "d": np.asarray(2.5, np.float32),
        "e": np.zeros((0, 4), np.float32),
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("shard_bytes", [10**9, 40])
def test_written_is_read(tmp_path: Path, shard_bytes: int) -> None:
    write(tmp_path, numbers(), shard_bytes=shard_bytes)
    same({name: tensor.read() for name, tensor in stored_tensors(tmp_path).items()}, numbers())
    assert (tmp_path / INDEX).exists() == (shard_bytes == 40)


def test_the_library_reads_ours(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    write(tmp_path, numbers())
    loaded = library.load_file(tmp_path / SINGLE)
    assert loaded["b"].dtype == torch.bfloat16
    for name, x in numbers().items():
        assert torch.equal(loaded[name].float(), torch.from_numpy(x.astype(np.float32))), name


def test_we_read_the_library(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensors = {"x": torch.randn(4, 3).to(torch.bfloat16), "y": torch.arange(3)}
    library.save_file(tensors, tmp_path / SINGLE)
    stored = stored_tensors(tmp_path)
    assert stored["x"].read().tobytes() == tensors["x"].view(torch.int16).numpy().tobytes()
    with pytest.raises(ConfigError, match="number format I64"):
        stored["y"].read()


def test_torn_file(tmp_path: Path) -> None:
    write(tmp_path, numbers())
    whole = (tmp_path / SINGLE).read_bytes()
    for length, message in ((len(whole) - 4, "torn"), (40, "torn"), (3, "not a safetensors")):
        (tmp_path / SINGLE).write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=message):
            stored_tensors(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"\x08" + bytes(7) + b"not json" + bytes(100))
    with pytest.raises(ConfigError, match="header is no JSON"):
        stored_tensors(tmp_path)


def test_missing_shard_and_false_index(tmp_path: Path) -> None:
    write(tmp_path, numbers(), shard_bytes=40)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = index["weight_map"]
    wrong = {**index, "weight_map": shards | {"ghost": shards["a"]}}
    (tmp_path / INDEX).write_text(json.dumps(wrong))
    with pytest.raises(ConfigError, match="ghost"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ConfigError, match=f"{shard.name}: no such file"):
        stored_tensors(tmp_path)


def test_pickles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pickle file.*save_pretrained"):
        stored_tensors(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        stored_tensors(tmp_path)
