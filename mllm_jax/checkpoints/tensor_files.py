"""The safetensors format, read and written tensor by tensor, never a whole file at once.

Format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a
JSON header {name: {dtype, shape, data_offsets}}, then the bytes. Numbers are little-endian, and so
is every machine JAX runs on. The safetensors library's numpy side knows no bfloat16 and saves whole
dicts; hence this file.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mllm_jax.checkpoints.leaves import Index, Leaf, size_of
from mllm_jax.errors import ConfigError, require
from mllm_jax.json_file import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FORMATS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in FORMATS.items()}
DTYPES = {dtype.name: dtype for dtype in FORMATS.values()}
HEADER_LIMIT = 100_000_000  # bytes, the library's own limit
PAGE = 4096  # bytes; what a disk reads at least
SHARD_BYTES = 5_000_000_000  # what save_pretrained takes


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies. `format` is the header's dtype word, e.g. "BF16"."""

    file: Path
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self, index: Index | None = None) -> np.ndarray:
        """The array, or the part at `index`, of which only the bytes are read that it needs.

        Runs that lie apart are read one by one, unless they are shorter than a page: then whole
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
            require(got > 0, f"{self.file}: torn: it ends before byte {begin + len(into)}")
            into, begin = into[got:], begin + got

    def check(self) -> None:
        """Raises ConfigError for a number format that parameters do not have."""
        allowed = ", ".join(FORMATS)
        require(
            self.format in FORMATS,
            f"{self.file}: number format {self.format} is not supported; allowed are {allowed}",
        )


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder, one file or shards by the index.

    Raises:
        ConfigError: no safetensors file, a shard that is missing or torn, an index that disagrees
            with its shards.
    """
    if (folder / INDEX).is_file():
        weight_map: Any = read_json(folder / INDEX).get("weight_map")
        require(
            isinstance(weight_map, dict) and len(weight_map) > 0, f"{folder / INDEX}: no weight_map"
        )
        found = {}
        for shard in sorted(set(weight_map.values())):
            found |= _read_header(folder / shard)
        missing, extra = sorted(set(weight_map) - set(found)), sorted(set(found) - set(weight_map))
        require(
            not missing and not extra,
            f"{folder / INDEX}: disagrees with its shards: missing {missing}, extra {extra}",
        )
        return found
    if (folder / SINGLE).is_file():
        return _read_header(folder / SINGLE)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    require(
        not pickles,
        f"{folder}: only {pickles[0].name if pickles else ''}, a pickle file, which is not opened; "
        "save it as safetensors with transformers: "
        "AutoModel.from_pretrained(...).save_pretrained(...)",
    )
    raise ConfigError(f"{folder}: no {SINGLE} and no {INDEX}")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    require(path.is_file(), f"{path}: no such file")
    total = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT
        require(
            length <= min(HEADER_LIMIT, total - 8),
            f"{path}: not a safetensors file, or torn ({total} bytes)",
        )
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a safetensors file: its header is no JSON") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(
            path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin
        )
        dtype = FORMATS.get(entry["dtype"])
        size = math.prod(entry["shape"]) * dtype.itemsize if dtype else end - begin
        require(end - begin == size, f"{path}: torn: {name} has {end - begin} bytes, not {size}")
        require(
            8 + length + end <= total,
            f"{path}: torn: {name} ends at byte {8 + length + end}, the file has {total}",
        )
    return tensors


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
            np.ascontiguousarray(array).tofile(file)
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
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
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
        if name != "__metadata__"
    }
