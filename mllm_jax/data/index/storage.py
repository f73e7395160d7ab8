"""Stores the records of a stream as memory-mapped arrays on disk: the length index and the tokens.

Written in chunks, each complete in itself, so that an interrupted build continues; joined into one
folder at the end:

    records.npy     a line per usable record, see RECORD
    tokens.bin      int32, records end to end; an image is one token
    weights.bin     bool, likewise
    hashes.bin      uint64, of every image, see images.fingerprint; 0 where not decoded
    image_sizes.bin int32, upright height and width of every image
    ids.bin         UTF-8, ids end to end
    digests.bin     uint64, two a record: of its id and of its content; gone when doubles are marked
    pictures.bin    UTF-8, image paths in the image folder; a record's end in NUL each; a path that
                    is empty says that the picture is in the row itself
    faults.jsonl    what is wrong with every other row
    unread.json     keys that nothing read, and how many times they held something
    duplicates.npy  records whose id and content an earlier one has; faults.jsonl has them too
    pairs.npy       uint64, a digest of the value by which each record is paired; only where the
                    stream's records are, see pairing
    numbers.npy     records that share their id with earlier ones of other content, and which of
                    that id each is: 2 for `x#2`
"""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

from mllm_jax.common.errors import quoted
from mllm_jax.common.failures import naming
from mllm_jax.common.folders import whole_file
from mllm_jax.data.record_errors import RefusedRow

RECORD = np.dtype(
    [
        ("row", np.int64),  # in the source
        ("tokens", np.int64),  # end of its tokens
        ("id", np.int64),  # end of its id
        ("pictures", np.int64),  # end of its image paths
        ("hashes", np.int64),  # end of its image hashes and sizes
        ("size", np.int32),  # tokens, an image counted as one
        ("images", np.int32),
        ("first", np.int32),  # first token that is a target; `size` if there is none
        ("before", np.int32),  # images before it
        ("last", np.int32),  # last image token; -1 without images
        ("trained", np.int32),  # tokens
        ("words", np.int32),  # in what is trained, between white space
        ("characters", np.int32),  # in what is trained
        ("answers", np.int32),  # each is ended by one trained token more
        ("language", np.int32),  # number in the list of languages
    ]
)
ENDS = ("tokens", "id", "pictures", "hashes")
MOST_KEYS = 1000  # unread keys that are counted by name
OTHER_KEYS = "..."  # all others


class Chunk(NamedTuple):
    """Some rows of a stream, read and tokenised."""

    records: np.ndarray  # RECORD; ends count from the chunk's own beginning
    tokens: Int32[np.ndarray, "t"]
    weights: Bool[np.ndarray, "t"]
    hashes: UInt64[np.ndarray, "i"]
    image_sizes: Int32[np.ndarray, "i 2"]  # upright height and width
    ids: bytes
    digests: UInt64[np.ndarray, "n 2"]  # of the ids and of the contents
    pictures: bytes
    faults: list[RefusedRow]
    unread: dict[str, int]  # keys that nothing read -> how many times they held something
    # digests of the values by which records are paired, see pairing; empty where they are not
    pairs: UInt64[np.ndarray, "n"]


def save_chunk(chunk: Chunk, path: Path) -> None:
    """Writes a chunk; the file is complete or missing."""
    arrays = {
        "records": chunk.records,
        "tokens": chunk.tokens,
        "weights": chunk.weights,
        "hashes": chunk.hashes,
        "image_sizes": chunk.image_sizes,
        "ids": np.frombuffer(chunk.ids, np.uint8),
        "digests": chunk.digests,
        "pictures": np.frombuffer(chunk.pictures, np.uint8),
        "faults": np.frombuffer(json.dumps(chunk.faults).encode(), np.uint8),
        "unread": np.frombuffer(json.dumps(chunk.unread).encode(), np.uint8),
        "pairs": chunk.pairs,
    }
    with whole_file(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes one array; an OSError says why, as numpy's does not where it gets the file itself."""
    with naming(path), path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)  # pyright: ignore


def load_chunk(path: Path) -> Chunk:
    """A chunk as `save_chunk` wrote it."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        faults = [RefusedRow(*line) for line in json.loads(file["faults"].tobytes())]
        return Chunk(
            file["records"],
            file["tokens"],
            file["weights"],
            file["hashes"],
            file["image_sizes"],
            file["ids"].tobytes(),
            file["digests"],
            file["pictures"].tobytes(),
            faults,
            json.loads(file["unread"].tobytes()),
            file["pairs"],
        )


def is_chunk(path: Path) -> bool:
    """Whether a chunk exists and can be read: a disk may have lost it after it was written."""
    try:
        load_chunk(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return False
    return True


def join_chunks(chunks: Iterable[Chunk], folder: Path) -> None:
    """Writes the arrays of a folder from its chunks, one in memory at a time."""
    records: list[np.ndarray] = []
    pairs: list[np.ndarray] = []
    unread: Counter[str] = Counter()
    ends = dict.fromkeys(ENDS, 0)
    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "weights.bin").open("wb") as weights,
        (folder / "hashes.bin").open("wb") as hashes,
        (folder / "image_sizes.bin").open("wb") as image_sizes,
        (folder / "ids.bin").open("wb") as ids,
        (folder / "digests.bin").open("wb") as digest,
        (folder / "pictures.bin").open("wb") as pictures,
        (folder / "faults.jsonl").open("w", encoding="utf-8") as faults,
    ):
        for chunk in chunks:
            moved = chunk.records.copy()
            for name in ENDS:
                moved[name] += ends[name]
            records.append(moved)
            pairs.append(chunk.pairs)
            sizes = (len(chunk.tokens), len(chunk.ids), len(chunk.pictures), len(chunk.hashes))
            ends = {name: ends[name] + size for name, size in zip(ENDS, sizes, strict=True)}
            tokens.write(chunk.tokens.tobytes())
            weights.write(chunk.weights.tobytes())
            hashes.write(chunk.hashes.tobytes())
            image_sizes.write(chunk.image_sizes.tobytes())
            ids.write(chunk.ids)
            digest.write(chunk.digests.tobytes())
            pictures.write(chunk.pictures)
            count_keys(unread, chunk.unread)
            for line in chunk.faults:
                faults.write(json.dumps(line._asdict(), ensure_ascii=False) + "\n")
    joined = np.concatenate(records) if records else np.zeros(0, RECORD)
    save_array(folder / "records.npy", joined)
    if any(map(len, pairs)):
        save_array(folder / "pairs.npy", np.concatenate(pairs))
    (folder / "unread.json").write_text(json.dumps(dict(unread.most_common())), encoding="utf-8")


def count_keys(total: Counter[str], more: dict[str, int]) -> None:
    """Adds counts of keys; beyond MOST_KEYS names, as of records whose keys are data, together."""
    for name, count in more.items():
        known = name in total or len(total) < MOST_KEYS
        total[name if known else OTHER_KEYS] += count


def digest(data: bytes) -> bytes:
    """8 bytes of an id or a content, by which its doubles are found."""
    return blake2b(data, digest_size=8).digest()


def mark_duplicates(folder: Path, location: Callable[[int], str]) -> list[str]:
    """Notes every record whose id and content an earlier one has, and numbers those that share ids.

    A picture's id may name all conversations about it (LLaVA's mix665k), and every shard of a tar
    set may begin at 000000: such records are different ones.

    Args:
        folder: as `join_chunks` wrote it.
        location: names a row for messages.

    Returns:
        The names that numbered records got, in no order.
    """
    store = Store(folder, marked=False)
    ids, content = np.fromfile(folder / "digests.bin", np.uint64).reshape(-1, 2).T
    order = np.lexsort((content, ids))  # stable: of equal ones, the first record comes first
    equal = (np.diff(ids[order]) == 0) & (np.diff(content[order]) == 0)
    again = np.sort(order[1:][equal])
    save_array(folder / "duplicates.npy", again)
    with (folder / "faults.jsonl").open("a", encoding="utf-8") as file:
        for record in again.tolist():
            row, name = int(store.records["row"][record]), quoted(store.id(record))
            reason = "an earlier record of the stream has this id and content"
            line = RefusedRow(row, name, location(row), "duplicate_id", reason)
            file.write(json.dumps(line._asdict(), ensure_ascii=False) + "\n")
    numbers = _numbers(ids, np.setdiff1d(np.arange(len(store)), again, assume_unique=True))
    names = _free_names(store, ids, numbers)
    save_array(folder / "numbers.npy", numbers)
    (folder / "digests.bin").unlink()
    return names


def _numbers(
    ids: UInt64[np.ndarray, "n"], records: Int64[np.ndarray, "r"]
) -> Int64[np.ndarray, "k 2"]:
    """(record, which of its id) for all but the first record of every id, in order."""
    order = records[np.argsort(ids[records], kind="stable")]
    new = np.diff(ids[order], prepend=~ids[order[:1]]) != 0
    place = np.arange(len(order))
    number = place - np.maximum.accumulate(np.where(new, place, 0)) + 1
    pairs = np.stack([order, number], axis=1)[~new]
    return pairs[np.argsort(pairs[:, 0])]


def _free_names(
    store: "Store", ids: UInt64[np.ndarray, "n"], numbers: Int64[np.ndarray, "k 2"]
) -> list[str]:
    """The names of numbered records; where a record has such an id itself, a later number."""
    taken, names = np.unique(ids), []
    for pair in numbers:
        name, number = store.id(int(pair[0])), int(pair[1])
        while _holds(taken, np.frombuffer(digest(f"{name}#{number}".encode()), np.uint64)[0]):
            number += len(ids)  # more than any record of this id has
        pair[1] = number
        names.append(f"{name}#{number}")
    return names


def _holds(values: UInt64[np.ndarray, "n"], value: np.uint64) -> bool:
    place = int(np.searchsorted(values, value))
    return place < len(values) and bool(values[place] == value)


class Store:
    """An index folder, opened: nothing is read before it is asked for."""

    def __init__(self, folder: Path, marked: bool = True):
        """`folder` as `join_chunks` and, where it says so, `mark_duplicates` wrote it."""
        self._folder = folder
        self.duplicates, self.numbers = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        if marked:
            self.duplicates = np.load(folder / "duplicates.npy", allow_pickle=False)
            self.numbers = np.load(folder / "numbers.npy", allow_pickle=False)
        self.records = np.load(folder / "records.npy", mmap_mode="r", allow_pickle=False)
        self.pairs = np.zeros(0, np.uint64)
        if (folder / "pairs.npy").is_file():
            self.pairs = np.load(folder / "pairs.npy", mmap_mode="r", allow_pickle=False)
        self._tokens = _open(folder / "tokens.bin", np.int32)
        self._weights = _open(folder / "weights.bin", np.bool_)
        self.hashes = _open(folder / "hashes.bin", np.uint64)
        self.image_sizes = _open(folder / "image_sizes.bin", np.int32).reshape(-1, 2)
        self._ids = _open(folder / "ids.bin", np.uint8)
        self._pictures = _open(folder / "pictures.bin", np.uint8)

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder itself; memory maps would be copied."""
        return Store, (self._folder,)

    def tokens(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, weights) of a record, an image as one token."""
        span = self._span(record, "tokens")
        return np.asarray(self._tokens[span]), self._weights[span].astype(np.float32)

    def id(self, record: int) -> str:
        """The record's id, with a number where earlier records of other content have it too."""
        name = self._ids[self._span(record, "id")].tobytes().decode("utf-8")
        place = int(np.searchsorted(self.numbers[:, 0], record))
        if place < len(self.numbers) and self.numbers[place, 0] == record:
            return f"{name}#{self.numbers[place, 1]}"
        return name

    def images(self, record: int) -> slice:
        """Where its images are in `hashes` and `image_sizes`."""
        return self._span(record, "hashes")

    def unread(self) -> dict[str, int]:
        """Keys that nothing read -> how many times they held something, most frequent first."""
        return json.loads((self._folder / "unread.json").read_text(encoding="utf-8"))

    def pictures(self, record: int) -> list[str]:
        """Paths of its images in the image folder; empty for images in the row itself."""
        joined = self._pictures[self._span(record, "pictures")].tobytes().decode("utf-8")
        return joined.split("\0")[:-1]

    def faults(self) -> Iterator[RefusedRow]:
        """The rows that could not be used, with their errors."""
        with (self._folder / "faults.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield RefusedRow(**json.loads(line))

    def _span(self, record: int, name: str) -> slice:
        start = 0 if record == 0 else int(self.records[name][record - 1])
        return slice(start, int(self.records[name][record]))


def _open(path: Path, kind: Any) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")
