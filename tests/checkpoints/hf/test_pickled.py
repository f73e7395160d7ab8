"""Files of torch.save without torch: equal to the bit, and every lie about a tensor refused."""

import contextlib
import math
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.checkpoints.hf import pickled
from mllm_jax.checkpoints.hf.pickled import StridedTensor, read_pickled
from mllm_jax.checkpoints.hf.tensor_files import StoredTensor
from mllm_jax.common.errors import ConfigError
from tests.support.torch_files import (
    ORDERED,
    PROTO,
    STOP,
    call,
    name,
    state_dict,
    storage,
    tensor,
    value,
    write_file,
)

SIX = np.arange(6, dtype=np.float32)
GOOD = {"0": SIX.tobytes()}


def save(path: Path, x: Any, **options: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(x, path, **options)
    return path


def bits(x: Any) -> bytes:
    """A torch tensor's numbers; numpy has no bfloat16."""
    torch = pytest.importorskip("torch")
    flat = x.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def views(torch: Any, random: np.random.Generator, dtype: Any) -> dict[str, Any]:
    """Tensors of one random storage: whole, sliced, transposed, stepped, narrow, of no axis."""
    sizes = random.integers(1, 7, 3).tolist()
    x = torch.from_numpy(random.standard_normal(sizes) * 100).to(dtype)
    return {
        "whole": x,
        "tied": x,
        "turned": x.permute(2, 0, 1),
        "transposed": x[0].T,
        "sliced": x[:, sizes[1] // 2 :],
        "stepped": x[..., ::2],
        "column": x[:, :1, -1],
        "scalar": x[-1, -1, -1],
        "none": x[:0],
        "flat": x.reshape(-1)[1:],
        "wide": x[:, None].expand(-1, 1, -1, -1),
        "alone": torch.nn.Parameter(x.clone()) if x.is_floating_point() else x.clone(),
    }


FLOATS = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_equals_torch(seed: int, protocol: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(seed)
    state = {
        f"{dtype}.{key}": x
        for dtype in FLOATS
        for key, x in views(torch, random, getattr(torch, dtype)).items()
    }
    path = save(tmp_path / "pytorch_model.bin", state, pickle_protocol=protocol)
    stored = read_pickled(path)
    assert list(stored) == list(state)
    strided = {key for key, x in stored.items() if isinstance(x, StridedTensor)}
    assert strided
    for key, x in state.items():
        array = stored[key].read()
        assert (array.shape, array.dtype.name) == (tuple(x.shape), key.split(".")[0])
        assert array.tobytes() == bits(x), key
        assert stored[key].nbytes == x.numel() * x.element_size()
        assert not isinstance(array, np.memmap)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        part = tuple(
            slice(*sorted(random.integers(0, n + 1, 2).tolist())) for n in stored[key].shape
        )
        assert stored[key].read(part).tobytes() == array[part].tobytes()
    tied, whole = stored["float32.tied"], stored["float32.whole"]
    assert (tied.offset, tied.nbytes) == (whole.offset, whole.nbytes), "stored once, read in place"
    assert stored["float32.alone"].offset != whole.offset


def test_a_module_as_it_is_saved(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).bfloat16()
    module.register_buffer("position_ids", torch.arange(5).expand((1, -1)))
    module.register_buffer("many", torch.arange(2**33, 2**33 + 3))
    state = module.state_dict()
    assert state._metadata
    for options in ({}, {"_use_new_zipfile_serialization": True}):
        stored = read_pickled(save(tmp_path / "a.bin", state, **options))
        assert {k: x.shape for k, x in stored.items()} == {
            k: tuple(x.shape) for k, x in state.items()
        }
        assert all(stored[k].read().tobytes() == bits(state[k]) for k in ("0.weight", "1.bias"))
        assert stored["position_ids"].format == stored["many"].format == "I64"
        with pytest.raises(ConfigError, match="number format I64 is not supported"):
            stored["position_ids"].read()


@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        *(("float64", "F64"), ("int32", "I32"), ("int16", "I16"), ("int8", "I8")),
        *(("uint8", "U8"), ("bool", "BOOL"), ("uint16", "U16"), ("uint32", "U32")),
        *(("uint64", "U64"), ("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2")),
    ],
)
def test_formats_that_parameters_do_not_have(dtype: str, word: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(3, 5, dtype=getattr(torch, dtype))
    stored = read_pickled(save(tmp_path / "a.bin", {"x": x, "part": x[1:]}))
    assert {(t.format, t.shape, t.nbytes) for t in stored.values()} == {
        (word, (3, 5), 15 * x.element_size()),
        (word, (2, 5), 10 * x.element_size()),
    }
    with pytest.raises(ConfigError, match=f"number format {word} is not supported"):
        stored["x"].read()


def test_without_checksums_and_with_a_strange_name(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"x": torch.arange(4.0)}
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "modèle ñ.bin", state)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_pickled(tmp_path / "modèle ñ.bin")["x"].read().tolist() == [0, 1, 2, 3]


UNREAD: dict[str, tuple[Any, str]] = {
    "nested": ({"state_dict": {"x": 1}, "epoch": 3}, r"'state_dict' is a dict, not a tensor"),
    "a number": ({"step": 3}, "'step' is an int, not a tensor"),
    "nothing": ({"x": None}, "'x' is None, not a tensor"),
    "a list": ([1], "holds a list, not a state dict"),
    "a key that is a number": ({1: 2}, "1 is an int, not a tensor"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_transformers_does_not_read_either(kind: str, tmp_path: Path) -> None:
    x, message = UNREAD[kind]
    path = write_file(tmp_path / "a.bin", pickle.dumps(x, 2))
    with pytest.raises(ConfigError, match=message):
        read_pickled(path)


def test_objects_of_torch_that_are_not_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for x, asked in (
        (torch.zeros(2).shape, "torch.Size"),
        (torch.device("cpu"), "torch.device"),
        (torch.float16, "torch.float16"),
        (torch.zeros(3, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ):
        with pytest.raises(ConfigError, match=f"asks for '{asked}'"):
            read_pickled(save(tmp_path / "a.bin", {"x": x}))
    with pytest.raises(ConfigError, match="metadata"):
        read_pickled(save(tmp_path / "a.bin", {"x": torch.zeros(3)._neg_view()}))
    with pytest.raises(ConfigError, match="'x' is a storage, not a tensor"):
        read_pickled(save(tmp_path / "a.bin", {"x": torch.zeros(3).untyped_storage()}))


def test_by_hand(tmp_path: Path) -> None:
    pickle = PROTO + state_dict(a=tensor(), b=tensor(shape=(3, 2), strides=(1, 3))) + STOP
    stored = read_pickled(write_file(tmp_path / "a.bin", pickle, GOOD))
    np.testing.assert_array_equal(stored["a"].read(), SIX.reshape(2, 3))
    np.testing.assert_array_equal(stored["b"].read(), SIX.reshape(2, 3).T)
    assert type(stored["a"]) is StoredTensor
    windows = PROTO + state_dict(a=tensor(strides=(1, 1))) + STOP
    stored_windows = read_pickled(write_file(tmp_path / "windows.bin", windows, GOOD))
    assert stored_windows["a"].read().tolist() == [[0, 1, 2], [1, 2, 3]]
    stored = read_pickled(write_file(tmp_path / "a.bin", pickle, GOOD, byteorder=b"little"))
    assert stored["b"].read((slice(1, 3), slice(1, 2))).tolist() == [[4], [5]]


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
REBUILD_3 = name("torch._utils", "_rebuild_tensor_v3")
PARAMETER = name("torch._utils", "_rebuild_parameter")
LIES: dict[str, tuple[bytes, str]] = {
    "an offset past the end": (tensor(offset=1), "leaves its storage of 6 numbers"),
    "an offset far past the end": (tensor(offset=2**62), "leaves its storage"),
    "a negative offset": (tensor(offset=-1), "a tensor's offset"),
    "an offset of text": (tensor(offset="0"), "a tensor's offset"),
    "an offset that is true": (tensor(offset=True), "a tensor's offset"),
    "a negative size": (tensor(shape=(-2, -3)), "shape and strides"),
    "a huge size": (tensor(shape=(2**62, 2**62)), "leaves its storage"),
    "a fraction": (tensor(shape=(2.0, 3)), "shape and strides"),
    "a size of text": (tensor(shape=("2", 3)), "shape and strides"),
    "a list": (tensor(shape=[2, 3]), "shape and strides"),
    "a shape nested in itself": (tensor(shape=((2,), 3)), "shape and strides"),
    "a negative stride": (tensor(offset=5, strides=(-3, -1)), "shape and strides"),
    "a stride out of the storage": (tensor(strides=(4, 1)), "leaves its storage"),
    "a huge stride": (tensor(strides=(2**62, 1)), "leaves its storage"),
    "a stride too few": (tensor(strides=(1,)), "shape and strides"),
    "33 axes": (tensor(shape=(1,) * 33, strides=(1,) * 33), "shape and strides"),
    "many axes": (tensor(shape=(9,) * 10**4, strides=(9,) * 10**4), "shape and strides"),
    "a number many times": (tensor(shape=(2**40,), strides=(0,)), "repeats the 6 numbers"),
    "windows that overlap": (tensor(shape=(3, 4), strides=(1, 1)), "repeats the 6 numbers"),
    "a storage of more": (tensor(storage(count=7)), "7 numbers in F32 are not the 24 bytes"),
    "a storage of less": (tensor(storage(count=5)), "5 numbers in F32 are not the 24 bytes"),
    "a storage of 2^62": (tensor(storage(count=2**62)), "are not the 24 bytes"),
    "a negative storage": (tensor(storage(count=-6)), "are not the 24 bytes"),
    "a storage in another format": (tensor(storage("HalfStorage")), "are not the 24 bytes"),
    "a storage of true": (tensor(storage(count=True)), "another form than torch's"),
    "a storage that is missing": (tensor(storage(key="1")), "no entry 'data/1'"),
    "a storage out of the folder": (tensor(storage(key="../../../etc/passwd")), "no entry"),
    "a storage at a path": (tensor(storage(key="/etc/passwd")), "no entry 'data//etc/passwd'"),
    "a storage that is a pickle": (tensor(storage(key="../data.pkl")), "no entry"),
    "a storage of a number": (tensor(storage(key=0)), "another form than torch's"),
    "a device of a number": (tensor(storage(device=0)), "another form than torch's"),
    "a storage without a class": (
        tensor(value(("storage", "FloatStorage", "0", "cpu", 6)) + b"Q"),
        "another form than torch's",
    ),
    "a storage of another word": (
        tensor(value(("module", name("torch", "FloatStorage"), "0", "cpu", 6)) + b"Q"),
        "another form than torch's",
    ),
    "a storage of six parts": (
        tensor(value(("storage", name("torch", "FloatStorage"), "0", "cpu", 6, None)) + b"Q"),
        "named by a tuple of another form",
    ),
    "a storage named by a text": (tensor(value("0") + b"Q"), "named by a str of another form"),
    "no storage": (tensor(value(7)), "a tensor without its storage"),
    "a storage's class": (tensor(name("torch", "FloatStorage")), "a tensor without its storage"),
    "a tensor of no arguments": (call(REBUILD), "a tensor of 0 arguments"),
    "a tensor of nine": (call(REBUILD, storage(), *[0] * 8), "a tensor of 9 arguments"),
    "a parameter of none": (call(PARAMETER, None, True, ORDERED), "a parameter without its"),
    "a parameter of a storage": (call(PARAMETER, storage(), True, ORDERED), "a parameter without"),
    "a format of a number": (
        call(REBUILD_3, storage(), 0, (2, 3), (3, 1), False, ORDERED, 7),
        "a tensor with a format",
    ),
    "two formats": (
        call(REBUILD_3, storage(), 0, (2,), (1,), False, ORDERED, name("torch", "uint16")),
        "a storage in two number formats",
    ),
    "an ordered dict of items": (
        call(name("collections", "OrderedDict"), [("a", 1)]),
        "OrderedDict with arguments",
    ),
    "a quantised tensor": (call(name("torch._utils", "_rebuild_qtensor")), "_rebuild_qtensor'"),
    "a wrapper": (call(name("torch._tensor", "_rebuild_from_type_v2")), "_rebuild_from_type_v2'"),
    "an older tensor": (call(name("torch._utils", "_rebuild_tensor")), "_rebuild_tensor'"),
    "a storage from bytes": (
        call(name("torch.storage", "_load_from_bytes"), "x"),
        "'torch.storage._load_from_bytes'",
    ),
    "a hub": (call(name("torch.hub", "load"), "evil/repo", "x"), "'torch.hub.load'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_tensors(lie: str, tmp_path: Path) -> None:
    instructions, message = LIES[lie]
    path = write_file(tmp_path / "a.bin", PROTO + state_dict(x=instructions) + STOP, GOOD)
    with pytest.raises(ConfigError) as caught:
        read_pickled(path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"{path}: ")
    assert len(text) < 400
    assert "\n" not in text


def test_one_storage_in_two_formats(tmp_path: Path) -> None:
    both = {"x": tensor(), "y": tensor(storage("IntStorage"))}
    path = write_file(tmp_path / "a.bin", PROTO + state_dict(**both) + STOP, GOOD)
    with pytest.raises(ConfigError, match="is both 6 numbers in F32 and 6 in I32"):
        read_pickled(path)


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    whole = PROTO + state_dict(x=tensor(), y=tensor(shape=(3, 2), strides=(1, 3))) + STOP
    path = write_file(tmp_path / "a.bin", whole, GOOD)
    stored = read_pickled(path)
    path.write_bytes(path.read_bytes()[: stored["x"].offset + 20])
    for x in stored.values():
        with pytest.raises(ConfigError, match="truncated: it ends before byte"):
            x.read()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = PROTO + state_dict(x=tensor(), y=tensor(shape=(3, 2), strides=(1, 3))) + STOP
    return write_file(tmp_path_factory.mktemp("fuzz") / "good.bin", whole, GOOD)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, good: Path) -> None:
    """Bytes changed, cut, doubled anywhere: ConfigError, or tensors that can be read."""
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert", "size", "double"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 60))]
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif change == "size":
            content[at : at + 4] = struct.pack("<i", data.draw(st.integers(-(2**31), 2**31 - 1)))
        else:
            content[at:at] = content[at : at + data.draw(st.integers(1, 200))]
        if not content:
            break
    path = good.with_name("changed.bin")
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        for x in read_pickled(path).values():
            assert x.nbytes <= len(content)
            if x.format in pickled.FORMATS:
                assert x.read().size == math.prod(x.shape)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_changed_pickles_are_read_or_refused(data: st.DataObject, good: Path) -> None:
    """The same inside of a zip file that is right."""
    content = bytearray(PROTO + state_dict(x=tensor(), y=tensor(shape=(6,), strides=(1,))) + STOP)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        other = data.draw(st.integers(0, len(content) - 1))
        put = data.draw(st.sampled_from(["byte", "piece", "nothing"]))
        pieces = {"byte": bytes([data.draw(st.integers(0, 255))]), "nothing": b""}
        content[at : at + 1] = pieces.get(put, content[other : other + 30])
        content = content or bytearray(b".")
    path = write_file(good.with_name("pickle.bin"), bytes(content), GOOD)
    with contextlib.suppress(ConfigError):
        for x in read_pickled(path).values():
            assert x.nbytes <= len(GOOD["0"])
            if x.format in pickled.FORMATS:
                assert x.read().size == math.prod(x.shape)


@settings(max_examples=200, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=4),
    offset=st.integers(0, 8),
)
def test_any_view_is_as_numpy_strides_it(
    axes: list[tuple[int, int]], offset: int, good: Path
) -> None:
    shape, strides = [size for size, _ in axes], [stride for _, stride in axes]
    numbers = np.arange(40, dtype=np.float32)
    instructions = tensor(storage(count=40), offset, tuple(shape), tuple(strides))
    path = good.with_name("view.bin")
    write_file(path, PROTO + state_dict(x=instructions) + STOP, {"0": numbers.tobytes()})
    with contextlib.suppress(ConfigError):
        x = read_pickled(path)["x"]
        steps = [4 * stride for stride in strides]
        expected = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps)
        np.testing.assert_array_equal(x.read(), expected)
        part = tuple(slice(n // 3, n) for n in shape)
        np.testing.assert_array_equal(x.read(part), expected[part])
        return
    last = offset + sum((n - 1) * stride for n, stride in axes)
    assert last >= 40 or math.prod(shape) > 40


def test_only_what_is_asked_for_is_in_memory(tmp_path: Path) -> None:
    """64 MB, of which a small tensor, then a part of a transposed one are read."""
    side = 4096
    wide = tensor(storage(count=side * side), 0, (side, side), (1, side))
    small = tensor(storage(count=side * side), side, (side,), (1,))
    numbers = np.arange(side * side, dtype=np.float32)
    pickle = PROTO + state_dict(wide=wide, small=small) + STOP
    path = write_file(tmp_path / "a.bin", pickle, {"0": numbers.tobytes()})
    tracemalloc.start()
    try:
        stored = read_pickled(path)
        one = stored["small"].read()
        part = stored["wide"].read((slice(0, 8), slice(0, 8)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(one, numbers[side : 2 * side])
    np.testing.assert_array_equal(part, numbers.reshape(side, side).T[:8, :8])
    assert peak < 2**20


def test_the_names_that_weights_need() -> None:
    assert set(pickled.BYTES) > pickled.FORMATS.keys()
    assert pickled.BYTES == {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U64": 8,
        "U32": 4,
        "U16": 2,
        "U8": 1,
        "BOOL": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
    }


def test_zip64(tmp_path: Path) -> None:
    """As torch writes files above 4 GB: sizes and offsets in the extra fields."""
    whole = PROTO + state_dict(x=tensor()) + STOP
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as file:
        for entry, content in {"a/data.pkl": whole, "a/data/0": GOOD["0"]}.items():
            with file.open(entry, "w", force_zip64=True) as opened:
                opened.write(content)
    np.testing.assert_array_equal(read_pickled(tmp_path / "a.bin")["x"].read(), SIX.reshape(2, 3))
