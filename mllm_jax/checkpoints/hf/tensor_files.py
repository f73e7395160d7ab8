"""The safetensors format, read and written tensor by tensor, never a whole file at once.

Format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a
JSON header {name: {dtype, shape, data_offsets}}, then the bytes. Numbers are little-endian, and so
is every machine JAX runs on. The safetensors library checks the headers; its numpy side knows no
bfloat16, reads no part of a row and saves whole dicts; hence this file.
"""

import itertools
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mllm_jax.checkpoints.leaves import Index, Leaf, size_of
from mllm_jax.common.errors import ConfigError, one_line, quoted, require
from mllm_jax.common.json_file import parse_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FORMATS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in FORMATS.items()}
DTYPES = {dtype.name: dtype for dtype in FORMATS.values()}
PAGE = 4096  # bytes; what a disk reads at least
HEADER_BYTES = 100_000_000  # of a header; the library's MAX_HEADER_SIZE
EXPLAINED_BYTES = 2**24  # of a refused one; a thousand tensors take about 120 kB
METADATA = "__metadata__"  # the header's only key that does not name a tensor
SHARD_BYTES = 5_000_000_000  # what save_pretrained takes


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is. `format` is the header's dtype word, e.g. "BF16"."""

    file: Path
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self, index: Index | None = None) -> np.ndarray:
        """The array, or the part at `index`, of which only the bytes are read that it needs.

        Runs that are apart are read one by one, unless they are shorter than a page: then whole
        rows are read, as the disk would.

        Raises:
            ConfigError: a number format that parameters do not have, or a file that has become
                shorter than its header says.
        """
        self.check()
        dtype = FORMATS[self.format]
        index = index or tuple(slice(0, n) for n in self.shape)
        cut = max((i for i, n in enumerate(self.shape) if index[i] != slice(0, n)), default=0)
        sizes = size_of(index)
        run = math.prod(sizes[cut:]) * dtype.itemsize
        if run < PAGE and math.prod(sizes[:cut]) > 1:
            wide = (*index[:cut], *(slice(0, n) for n in self.shape[cut:]))
            return np.ascontiguousarray(self.read(wide)[(..., *index[cut:])])
        out = np.empty(sizes, dtype)
        if out.size:
            self._read_runs(out.reshape(-1).view(np.uint8), index, cut, run)
        return out

    def _read_runs(self, out: np.ndarray, index: Index, cut: int, run: int) -> None:
        """Fills `out` with the runs of `run` bytes that begin at each position of axes < `cut`."""
        strides = np.cumprod([self.nbytes // max(math.prod(self.shape), 1), *self.shape[:0:-1]])
        begins = np.array([self.offset])
        for axis, cut_here in enumerate(index[: cut + 1]):
            last = cut_here.start + 1 if axis == cut else cut_here.stop
            steps = np.arange(cut_here.start, last) * strides[len(index) - 1 - axis]
            begins = np.add.outer(begins, steps).reshape(-1)
        file = os.open(self.file, os.O_RDONLY)
        try:
            for number, begin in enumerate(begins.tolist()):
                self._fill(file, out.data[number * run : (number + 1) * run], begin)
        finally:
            os.close(file)

    def _fill(self, file: int, into: memoryview, begin: int) -> None:
        while into:
            got = os.preadv(file, [into], begin)
            require(got > 0, f"{self.file}: truncated: it ends before byte {begin + len(into)}")
            into, begin = into[got:], begin + got

    def check(self) -> None:
        """Raises ConfigError for a number format that parameters do not have."""
        allowed = ", ".join(FORMATS)
        require(
            self.format in FORMATS,
            f"{self.file}: number format {self.format} is not supported; allowed are {allowed}",
        )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name; no number is read.

    The safetensors library checks the header: types, offsets without gaps, overlaps or bytes left
    over, sizes that fit the shapes, and the length of the file.

    Raises:
        ConfigError: the file is missing, truncated, or not valid safetensors.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        total = path.stat().st_size
        raise ConfigError(
            f"{path}: not a valid safetensors file, or truncated ({total} bytes): "
            f"{one_line(str(error), 160)}{_wrong_entry(path)}"
        ) from error
    length, header = _header(path, HEADER_BYTES)
    header.pop(METADATA, None)
    return {name: _stored(path, 8 + length, entry) for name, entry in header.items()}


def _header(path: Path, at_most: int) -> tuple[int, Any]:
    """Its length and content, unchecked. Raises ConfigError where it is longer or no JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        require(length <= at_most, f"{path}: a header of {length:,} bytes; {at_most:,} are allowed")
        return length, parse_json(file.read(length), f"{path}: header")


def _wrong_entry(path: Path) -> str:
    """Names the tensor that the library refuses, which it often does not: "; see 'a.weight'"."""
    try:
        _, header = _header(path, EXPLAINED_BYTES)
    except ConfigError:  # then no entry is to blame, and the library has said why
        return ""
    entries = header.items() if isinstance(header, dict) else ()
    wrong = (name for name, entry in entries if not _fits(name, entry))
    return "".join(f"; see {quoted(name, 80)}" for name in itertools.islice(wrong, 1))


def _fits(name: str, entry: Any) -> bool:
    """Whether an entry is right by itself, as far as its neighbours do not matter."""
    if not isinstance(entry, dict):
        return False
    if name == METADATA:
        return all(isinstance(value, str) for value in entry.values())
    dtype = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape"), 32), _counts(entry.get("data_offsets"), 2)
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        return False
    bits = re.match(r"[A-Z]+([0-9]{1,3})", dtype)  # BOOL alone says none
    begin, end = offsets
    return bits is None or math.prod(shape) * int(bits[1]) == 8 * (end - begin)


def _counts(values: Any, at_most: int) -> list[int] | None:
    """The list of up to so many sizes that this is, or None."""
    if not isinstance(values, list) or len(values) > at_most:
        return None
    return values if all(type(n) is int and 0 <= n < 2**64 for n in values) else None


def _stored(path: Path, start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(path, entry["dtype"], tuple(entry["shape"]), start + begin, end - begin)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Leaf],
    arrays: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `model.safetensors`, or shards with their index.

    Files and headers are laid out first; then each array goes to its place, in whatever order
    `arrays` brings them.

    Args:
        folder: an existing folder.
        tensors: name -> shape and number format (nothing is read through it).
        arrays: (name, array), each name of `tensors` exactly once.
        shard_bytes: a shard holds at most this many bytes, or a single tensor.
    """
    shards = _share_out(tensors, shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    places: dict[str, tuple[Path, int]] = {}
    for name, shard in zip(names, shards, strict=True):
        places |= _lay_out(folder / name, {key: tensors[key] for key in shard})
    if len(shards) > 1:
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in tensors.values())
        weight_map = {key: places[key][0].name for key in sorted(places)}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
    for name, array in arrays:
        path, offset = places.pop(name)
        leaf = tensors[name]
        assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype), name
        with path.open("r+b") as file:
            file.seek(offset)
            # not `tofile`: of a full disk it says how many numbers it wrote, and no more
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        del array  # not held while the next one is made
    assert not places, f"never written: {sorted(places)}"


def _share_out(tensors: Mapping[str, Leaf], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        nbytes = tensors[name].size * tensors[name].dtype.itemsize
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    return shards


def _lay_out(path: Path, tensors: Mapping[str, Leaf]) -> dict[str, tuple[Path, int]]:
    """Makes the file with its header and its full length: where each tensor's bytes begin."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    # wide formats first: all stay aligned
    for name in sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key)):
        leaf = tensors[name]
        begin, end = end, end + leaf.size * leaf.dtype.itemsize
        header[name] = {
            "dtype": NAMES[leaf.dtype],
            "shape": list(leaf.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return {
        name: (path, 8 + len(text) + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != METADATA
    }
