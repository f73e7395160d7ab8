"""Rows of a stream -> a part of its index: read, checked, looked at and tokenised together."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from mllm_jax.data import images
from mllm_jax.data.chat import Chat
from mllm_jax.data.columns import Columns
from mllm_jax.data.faults import Fault, FaultLine
from mllm_jax.data.record_fields import REMEMBERED, ImageFolder
from mllm_jax.data.records import Record, read_record
from mllm_jax.data.sources.base import Source
from mllm_jax.data.spans import Flat
from mllm_jax.data.store import RECORD, Part, digests
from mllm_jax.errors import ConfigError

Look = Callable[[str | bytes], int]


class Reader(NamedTuple):
    """Everything that makes records of rows; sent to every worker once."""

    name: str  # of the stream
    source: Source
    columns: Columns
    chat: Chat  # made with patches=1
    folder: ImageFolder
    language: str | None
    languages: tuple[str, ...]
    max_pixels: int
    decode: bool  # images to their end, or only their headers


class _Good(NamedTuple):
    row: int
    record: Record
    hashes: list[int]


def looks(reader: Reader) -> Look:
    """What gives an image's hash, or 0 where only its header is looked at. Raises Fault.

    It remembers the files that it has seen, so it must not outlive a build.
    """

    def look(image: str | bytes) -> int:
        if not reader.decode:
            images.check(image, reader.max_pixels)
            return 0
        return images.fingerprint(images.decode(image, reader.max_pixels))

    remembered = lru_cache(REMEMBERED)(look)
    return lambda image: remembered(image) if isinstance(image, str) else look(image)


def read_part(reader: Reader, rows: range, look: Look) -> Part:
    """Reads and tokenises these rows; what is wrong with a row is noted, never raised."""
    good: list[_Good] = []
    faults: list[FaultLine] = []
    for row in rows:
        key = str(row)
        try:
            raw = reader.columns(reader.source[row], row)
            key = str(raw["id"])
            record = read_record(raw, key, reader.folder, reader.language, reader.languages)
            hashes = [look(image) for image in record.images]
        except Fault as fault:
            faults.append(FaultLine(row, key, reader.source.where(row), fault.code, fault.reason))
        else:
            good.append(_Good(row, record, hashes))
    kept, flat, refused = _encode(reader.chat, good)
    for item, reason in refused:
        where = reader.source.where(item.row)
        faults.append(FaultLine(item.row, item.record.id, where, "template", reason))
    return _part(reader, kept, flat, sorted(faults))


def _encode(chat: Chat, good: list[_Good]) -> tuple[list[_Good], Flat, list[tuple[_Good, str]]]:
    """(encoded, their tokens, refused with the reason)."""
    if good and not good[0].record.turns:  # a stream has documents or conversations
        return good, chat.completions([item.record.text for item in good]), []
    try:
        return good, chat.encode_flat([item.record.turns for item in good]), []
    except ConfigError:  # one of them is refused: which?
        kept, flats, refused = [], [], []
        for item in good:
            try:
                flats.append(chat.encode_flat([item.record.turns]))
                kept.append(item)
            except ConfigError as error:
                refused.append((item, str(error)))
        return kept, Flat.join(flats), refused


def _part(reader: Reader, kept: list[_Good], flat: Flat, faults: list[FaultLine]) -> Part:
    ids = [item.record.id for item in kept]
    start = len(str(reader.folder.root / "x")) - 1  # of pictures' names in their paths
    pictures = [_paths(item.record, start) for item in kept]
    records = np.zeros(len(kept), RECORD)
    records["size"] = np.diff(flat.ends, prepend=0)
    records["images"] = [len(item.hashes) for item in kept]
    records["row"] = [item.row for item in kept]
    records["language"] = [reader.languages.index(item.record.language) for item in kept]
    words = [_words(item.record) for item in kept]
    records["words"], records["answers"] = np.array(words, np.int32).reshape(-1, 2).T
    records["tokens"] = flat.ends
    records["hashes"] = np.cumsum(records["images"])
    records["id"] = np.cumsum([_bytes(key) for key in ids])
    records["pictures"] = np.cumsum([_bytes(paths) for paths in pictures])
    _measure(records, flat.trained, flat.tokens == reader.chat.image_token)
    hashes = np.array([h for item in kept for h in item.hashes], np.uint64)
    joined = "".join(ids).encode(), digests(ids), "".join(pictures).encode()
    return Part(records, flat.tokens, flat.trained, hashes, *joined, faults)


def _measure(
    records: np.ndarray, weights: Bool[np.ndarray, "t"], seats: Bool[np.ndarray, "t"]
) -> None:
    """Fills in `first`, `before`, `last` and `trained`, see RECORD.

    Args:
        records: with `size` and `tokens`, the ends of the records in what follows.
        weights: of all tokens, records end to end; an image is one token.
        seats: whether a token is an image.
    """
    size, start = records["size"], records["tokens"] - records["size"]
    position = np.arange(len(weights)) - np.repeat(start, size)
    targets = weights & (position > 0)  # a record's first token is nobody's target
    if not len(records):
        return
    records["first"] = np.minimum.reduceat(np.where(targets, position, len(weights)), start)
    records["first"] = np.minimum(records["first"], size)
    records["last"] = np.maximum.reduceat(np.where(seats, position, -1), start)
    records["trained"] = np.add.reduceat(weights, start, dtype=np.int32)
    early = seats & (position < np.repeat(records["first"], size))
    records["before"] = np.add.reduceat(early, start, dtype=np.int32)


def _paths(record: Record, start: int) -> str:
    """Image paths in the image folder, each with a NUL behind it."""
    names = ["" if isinstance(image, bytes) else image[start:] for image in record.images]
    return "\0".join((*names, ""))


def _bytes(text: str) -> int:
    """Of its UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _words(record: Record) -> tuple[int, int]:
    """(words, answers) of what is trained."""
    if not record.turns:
        return len(record.text.split()), 1
    words = answers = 0
    for role, parts in record.turns:
        if role == "assistant":
            answers += 1
            for part in parts:
                words += len(part.split()) if isinstance(part, str) else 0
    return words, answers
