"""Our safetensors against the safetensors library; headers that it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints.hf import tensor_files
from mllm_jax.checkpoints.hf.tensor_files import INDEX, METADATA, SINGLE, read_header, write_tensors
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.common.errors import ConfigError


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


def test_truncated_file(tmp_path: Path) -> None:
    write(tmp_path, numbers())
    whole = (tmp_path / SINGLE).read_bytes()
    for length in (len(whole) - 4, 40, 3, 0):
        (tmp_path / SINGLE).write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=rf"truncated \({length} bytes\)"):
            read_header(tmp_path / SINGLE)


def test_a_read_that_brings_less_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems return fewer bytes than were asked for."""
    array = np.arange(2_000, dtype=np.float32)
    write(tmp_path, {"a": array})
    preadv = os.preadv

    def short(file: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(file, [buffers[0][:1000]], offset)

    monkeypatch.setattr(tensor_files.os, "preadv", short)
    assert np.array_equal(read_header(tmp_path / SINGLE)["a"].read(), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [8, 5_000])
def test_a_part_reads_little_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, columns: int
) -> None:
    """Runs of a page and more alone, shorter ones with the rest of their rows."""
    array = np.random.default_rng(0).integers(0, 250, (6, 4, columns)).astype(dtype)
    write(tmp_path, {"a": array})
    preadv, reads = os.preadv, []

    def noted(file: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(len(buffers[0]))
        return preadv(file, buffers, offset)

    monkeypatch.setattr(tensor_files.os, "preadv", noted)
    index = (slice(1, 5), slice(2, 4), slice(1, columns - 1))
    part = read_header(tmp_path / SINGLE)["a"].read(index)
    assert part.tobytes() == array[index].tobytes()
    size = array.dtype.itemsize
    assert reads == ([(columns - 2) * size] * 8 if columns > 8 else [4 * 4 * 8 * size])


def test_wide_formats_come_first(tmp_path: Path) -> None:
    """So every tensor begins at a multiple of its own width."""
    write(tmp_path, {"a": np.zeros(3, np.float16), "b": np.zeros(2, np.float32)})
    stored = read_header(tmp_path / SINGLE)
    assert stored["b"].offset % 4 == 0 and stored["b"].offset < stored["a"].offset


def test_headers_are_aligned(tmp_path: Path) -> None:
    for length in range(1, 9):  # names of every length move the header's end
        write(tmp_path, {"n" * length: np.zeros(3, np.float32)})
        start = (tmp_path / SINGLE).read_bytes()[:8]
        assert int.from_bytes(start, "little") % 8 == 0


def test_a_shard_may_be_exactly_full(tmp_path: Path) -> None:
    tensors = {name: np.zeros(5, np.float32) for name in "abcd"}
    write(tmp_path, tensors, shard_bytes=40)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert weight_map == {"a": first, "b": first, "c": second, "d": second}


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "a list": [],
    "no object": {"a": 3},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "one offset": {"a": A | {"data_offsets": [0]}},
    "negative": {"a": A | {"data_offsets": [-8, 0]}},
    "backwards": {"a": A | {"data_offsets": [8, 0]}},
    "text for offsets": {"a": A | {"data_offsets": ["0", "8"]}},
    "overlap": {"a": A, "b": A | {"data_offsets": [4, 12]}},
    "the same bytes twice": {"a": A, "b": A},
    "a hole": {"a": A, "b": A | {"data_offsets": [12, 20]}},
    "bytes left over": {"a": A | {"shape": [1], "data_offsets": [0, 4]}},
    "another size": {"a": A | {"shape": [3]}},
    "floats for a shape": {"a": A | {"shape": [2.0]}},
    "text for a shape": {"a": A | {"shape": "2"}},
    "a negative shape": {"a": A | {"shape": [-2]}},
    "a shape beyond 64 bits": {"a": A | {"shape": [2**40, 2**40]}},
    "a number for a dtype": {"a": A | {"dtype": 5}},
    "an unknown dtype": {"a": A | {"dtype": "F33"}},
    "metadata without text": {"a": A, "__metadata__": {"format": 3}},
    "a list of metadata": {"a": A, "__metadata__": []},
}


def put_header(path: Path, text: bytes, body: bytes = bytes(8)) -> None:
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_that_the_library_refuses(tmp_path: Path, header: Any) -> None:
    put_header(tmp_path / SINGLE, json.dumps({"a": A}).encode())
    assert read_header(tmp_path / SINGLE)["a"].read().tolist() == [0.0, 0.0]
    body = bytes(20 if "b" in header else 8)
    put_header(tmp_path / SINGLE, json.dumps(header).encode(), body)
    with pytest.raises(ConfigError, match=r"model\.safetensors: not a valid safetensors file") as e:
        read_header(tmp_path / SINGLE)
    assert "\n" not in str(e.value)


ALONE = {  # of HEADERS, those in which one entry is wrong by itself
    name: header
    for name, header in HEADERS.items()
    if isinstance(header, dict) and "b" not in header and name != "bytes left over"
}


@pytest.mark.parametrize("header", ALONE.values(), ids=ALONE)
def test_the_tensor_that_is_refused_is_named(tmp_path: Path, header: Any) -> None:
    name = "x.weight" if METADATA not in header else METADATA
    first, last = A, A | {"data_offsets": [8, 16]}
    wrong = header.get(METADATA, header["a"])
    entries = {"w.weight": first, name: wrong, "y.weight": last}
    put_header(tmp_path / SINGLE, json.dumps(entries).encode(), bytes(16))
    with pytest.raises(ConfigError, match=f"; see '{name}'$"):
        read_header(tmp_path / SINGLE)


RAW = {
    "not json": b"not json",
    "a key twice": b'{"a":%s,"a":%s}' % ((json.dumps(A).encode(),) * 2),
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "digits": b'{"a":' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"\xff":' + json.dumps(A).encode() + b"}",
}


@pytest.mark.parametrize("text", RAW.values(), ids=RAW)
def test_headers_that_are_no_json(tmp_path: Path, text: bytes) -> None:
    put_header(tmp_path / SINGLE, text)
    with pytest.raises(ConfigError, match=r"model\.safetensors: "):
        read_header(tmp_path / SINGLE)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ConfigError, match="not a valid safetensors file"):
        read_header(tmp_path / SINGLE)
