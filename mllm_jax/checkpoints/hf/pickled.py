"""The files of `torch.save` (`pytorch_model.bin`), read without torch; nothing in them is run.

    pytorch_model.bin: a zip file, its entries stored as they are
        NAME/data.pkl    a pickle: {tensor's name: (storage, offset, shape, strides)}
        NAME/data/0, ... storages: the bytes of numbers, little-endian
        NAME/byteorder   "little" or "big"; files of torch 1 have none

`unpickle` executes the pickle under the list of names below. Numbers are read straight from the zip
file, part by part as from safetensors; several tensors may share a storage (tied weights). As in
torch, and in safetensors, storages have no checksum that counts: torch can leave them out.
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.checkpoints.hf.tensor_files import FORMATS, StoredTensor
from mllm_jax.checkpoints.hf.torch_zip import PICKLE, TorchZip, open_zip
from mllm_jax.checkpoints.hf.unpickle import PICKLE_BYTES, Function, Ordered, Unpickler, kind
from mllm_jax.checkpoints.leaves import Index, size_of
from mllm_jax.common.errors import quoted, require

# torch.NAMEStorage -> safetensors' word for its number format
STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}
# formats without a storage of their own: torch 2 saves their bytes, and the format beside them
NEW_FORMATS = {
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
UNTYPED = "U8"  # torch.storage.UntypedStorage counts bytes
BYTES = {  # of a number
    word: 1 if word == "BOOL" else int(re.findall(r"\d+", word)[0]) // 8
    for word in (*STORAGES.values(), *NEW_FORMATS.values())
}
AXES = 32  # of a tensor, at most; as in safetensors headers here
SAVE_AGAIN = "open it with torch where it was made and save model.state_dict() again"


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file; tensors are views of it."""

    file: Path
    format: str
    offset: int
    count: int


@dataclass(frozen=True)
class StridedTensor(StoredTensor):
    """A view whose numbers do not follow one another, such as a transposed matrix."""

    strides: tuple[int, ...]  # in numbers, not bytes

    def read(self, index: Index | None = None) -> np.ndarray:
        """The array, or the part at `index`; of the file only the pages are read that it needs."""
        self.check()
        dtype = FORMATS[self.format]
        index = index or tuple(slice(0, n) for n in self.shape)
        if not math.prod(size_of(index)):
            return np.empty(size_of(index), dtype)
        span = _span(self.shape, self.strides)
        end = self.offset + span * dtype.itemsize
        require(
            self.file.stat().st_size >= end, f"{self.file}: truncated: it ends before byte {end}"
        )
        numbers = np.memmap(self.file, dtype, "r", self.offset, (span,))
        steps = [stride * dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers, self.shape, steps, writeable=False)
        return np.array(view[index], dtype, order="C", subok=False)


def read_pickled(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name; no number is read.

    Raises:
        ConfigError: the file is missing, truncated, of another kind, asks for a name that weights
            do not need, or says something about a tensor that its storages do not hold.
    """
    with open_zip(path) as archive:
        where = f"{path}: {PICKLE}"
        storages: dict[str, Storage] = {}
        names = {
            "collections OrderedDict": Function(partial(_ordered, where)),
            "torch._utils _rebuild_tensor_v2": Function(partial(_tensor, where)),
            "torch._utils _rebuild_tensor_v3": Function(partial(_new_tensor, where)),
            "torch._utils _rebuild_parameter": Function(partial(_parameter, where)),
            "torch.storage UntypedStorage": _Format(UNTYPED),
            **{f"torch {name}Storage": _Format(word) for name, word in STORAGES.items()},
            **{f"torch {name}": _Format(word) for name, word in NEW_FORMATS.items()},
        }
        persistent = partial(_storage, where, archive, storages)
        tree = Unpickler(where, names, persistent).load(archive.read(PICKLE, PICKLE_BYTES))
    return _state_dict(where, tree)


def _state_dict(where: str, tree: Any) -> dict[str, StoredTensor]:
    """The tensors of a flat state dict, which is what transformers reads."""
    require(isinstance(tree, dict), f"{where}: holds {kind(tree)}, not a state dict; {SAVE_AGAIN}")
    for name, value in tree.items():
        require(
            type(name) is str and isinstance(value, StoredTensor),
            f"{where}: {quoted(name)} is {kind(value)}, not a tensor; transformers reads a flat "
            f"state dict too: {SAVE_AGAIN}",
        )
    return dict(tree)


@dataclass(frozen=True)
class _Format:
    """A storage's class, or torch's name of a number format."""

    word: str


def _ordered(where: str, arguments: tuple[Any, ...]) -> Ordered:
    """`OrderedDict()`; its items follow as instructions."""
    require(not arguments, f"{where}: OrderedDict with arguments, which weights do not need")
    return Ordered()


def _storage(where: str, archive: TorchZip, storages: dict[str, Storage], identity: Any) -> Storage:
    """The storage that ("storage", its class, key, device, count) names."""
    types = [str, _Format, str, str, int]
    right = type(identity) is tuple and [type(part) for part in identity] == types
    require(
        right and identity[0] == "storage",
        f"{where}: malformed: a storage is named by {kind(identity)} of another form than torch's",
    )
    _, form, key, _, count = identity
    word = form.word
    storage = storages.get(key)
    if storage is None:
        offset, nbytes = archive.place(f"data/{key}")
        require(
            count * BYTES[word] == nbytes,
            f"{where}: storage {quoted(key)}: {count} numbers in {word} are not the "
            f"{nbytes} bytes that are stored",
        )
        storage = storages[key] = Storage(archive.path, word, offset, count)
    require(
        (storage.format, storage.count) == (word, count),
        f"{where}: storage {quoted(key)} is both {storage.count} numbers in {storage.format} and "
        f"{count} in {word}",
    )
    return storage


def _tensor(where: str, arguments: tuple[Any, ...]) -> StoredTensor:
    """(storage, offset, shape, strides, requires_grad, hooks[, metadata]), as torch names them."""
    require(len(arguments) in (6, 7), f"{where}: malformed: a tensor of {len(arguments)} arguments")
    require(
        len(arguments) == 6 or arguments[6] in (None, {}),
        f"{where}: a tensor with metadata (of a subclass, or conjugated), which is not read",
    )
    return _view(where, *arguments[:4])


def _new_tensor(where: str, arguments: tuple[Any, ...]) -> StoredTensor:
    """The same with a format: (storage, offset, shape, strides, _, hooks, dtype[, metadata])."""
    right = len(arguments) in (7, 8)
    require(
        right and isinstance(arguments[0], Storage) and isinstance(arguments[6], _Format),
        f"{where}: malformed: a tensor with a format of {len(arguments)} arguments",
    )
    storage, word = arguments[0], arguments[6].word
    require(storage.format == UNTYPED, f"{where}: malformed: a storage in two number formats")
    numbers = Storage(storage.file, word, storage.offset, storage.count // BYTES[word])
    return _tensor(where, (numbers, *arguments[1:6], *arguments[7:]))


def _parameter(where: str, arguments: tuple[Any, ...]) -> StoredTensor:
    """A `torch.nn.Parameter`: (tensor, requires_grad, hooks)."""
    right = len(arguments) == 3 and isinstance(arguments[0], StoredTensor)
    require(right, f"{where}: malformed: a parameter without its tensor")
    return arguments[0]


def _view(where: str, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    """A tensor, if all of its numbers are in its storage and none of them is there twice."""
    require(isinstance(storage, Storage), f"{where}: malformed: a tensor without its storage")
    sizes = _counts(shape)
    steps = _counts(strides)
    require(
        sizes is not None and steps is not None and len(sizes) == len(steps) <= AXES,
        f"{where}: malformed: shape and strides of a tensor are not two tuples of up to {AXES} "
        "whole numbers from 0",
    )
    assert sizes is not None and steps is not None
    require(_counts((offset,)) is not None, f"{where}: malformed: a tensor's offset")
    count = math.prod(sizes)
    require(
        offset + _span(sizes, steps) <= storage.count,
        f"{where}: a tensor of shape {list(sizes)}, strides {list(steps)} from {offset} on "
        f"leaves its storage of {storage.count} numbers",
    )
    require(
        count <= storage.count,
        f"{where}: a tensor of shape {list(sizes)} and strides {list(steps)} repeats the "
        f"{storage.count} numbers of its storage; save it with .contiguous()",
    )
    size = BYTES[storage.format]
    place = (storage.file, storage.format, sizes)
    start = storage.offset + offset * size
    if count == 0 or _is_contiguous(sizes, steps):
        return StoredTensor(*place, start, count * size)
    return StridedTensor(*place, start, count * size, steps)


def _counts(values: Any) -> tuple[int, ...] | None:
    """The tuple of whole numbers of at least 0 that this is, or None."""
    right = type(values) is tuple and all(type(n) is int and n >= 0 for n in values)
    return values if right else None


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many numbers there are from a view's first to its last; 0 if it has none."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True
