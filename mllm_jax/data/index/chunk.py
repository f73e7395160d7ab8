"""Rows of a stream -> a part of its index: read, checked, looked at and tokenised together."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64

from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, cut
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.tokens import Flat
from mllm_jax.data.images import decode as images
from mllm_jax.data.index.pairing import NO_VALUE
from mllm_jax.data.index.storage import RECORD, Chunk, count_keys, digest
from mllm_jax.data.record_errors import RecordError, RefusedRow
from mllm_jax.data.records.fields import REMEMBERED, ImageFolder
from mllm_jax.data.records.layouts import Columns
from mllm_jax.data.records.parse import IMAGE, Record, read_record, trained_texts
from mllm_jax.data.sources.base import Source

TOGETHER = 2**22  # bytes tokenised at a time: a tokenizer takes up to 200 times as much
NAME = 200  # characters of an id that a record error keeps


class Seen(NamedTuple):
    """What is known of an image once it has been looked at."""

    hash: int  # see images.fingerprint; 0 where it was not decoded
    size: tuple[int, int]  # upright height and width


Look = Callable[[str | bytes], Seen]


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
    paired: bool = False  # rows have a value by which they are paired, see pairing


class _Good(NamedTuple):
    row: int
    record: Record
    images: list[Seen]
    content: bytes  # see `_content`
    pair: str | None  # value by which it is paired


def looks(reader: Reader) -> Look:
    """What looks at an image, at its header alone where it is not decoded. Raises RecordError.

    It remembers the files that it has seen, so it must not outlive a build.
    """

    def look(image: str | bytes) -> Seen:
        if not reader.decode:
            return Seen(0, images.check(image, reader.max_pixels))
        pixels = images.decode(image, reader.max_pixels)
        return Seen(images.fingerprint(pixels), pixels.shape[:2])

    remembered = lru_cache(REMEMBERED)(look)
    return lambda image: remembered(image) if isinstance(image, str) else look(image)


def read_chunk(reader: Reader, rows: range, look: Look) -> Chunk:
    """Reads and tokenises these rows; record errors are collected, never raised."""
    good: list[_Good] = []
    faults: list[RefusedRow] = []
    unread: Counter[str] = Counter()
    for row in rows:
        interrupts.check()
        key, values = str(row), None
        try:
            values = reader.source[row]
            raw = reader.columns(values, row)
            key = str(raw["id"])
            record = read_record(raw, key, reader.folder, reader.language, reader.languages)
            seen = [look(image) for image in record.images]
        except RecordError as error:
            key = reader.columns.key(values or {}, row)
            faults.append(_line(reader, row, key, error))
        else:
            good.append(_Good(row, record, seen, _content(record), raw.get("pair")))
            if "unread" in raw:
                count_keys(unread, Counter(raw["unread"]))
    usable, flats = [], []
    for batch in _batches(good):
        encoded, flat, refused = _encode(reader.chat, batch)
        usable += encoded
        flats.append(flat)
        for item, reason in refused:
            faults.append(_line(reader, item.row, item.record.id, RecordError("template", reason)))
    flat = flats[0] if len(flats) == 1 else Flat.join(flats)
    return _chunk(reader, usable, flat, sorted(faults), unread)


def _line(reader: Reader, row: int, key: str, error: RecordError) -> RefusedRow:
    return RefusedRow(row, cut(key, NAME), reader.source.location(row), error.code, error.reason)


def _batches(good: list[_Good]) -> Iterator[list[_Good]]:
    """Records that are tokenised together: nearly always all of them."""
    start, size = 0, 0
    for end, item in enumerate(good):
        more = len(item.content)
        if size + more > TOGETHER and end > start:
            yield good[start:end]
            start, size = end, 0
        size += more
    yield good[start:]


def _encode(chat: Chat, good: list[_Good]) -> tuple[list[_Good], Flat, list[tuple[_Good, str]]]:
    """(encoded, their tokens, refused with the reason)."""
    if good and not good[0].record.turns:  # a stream has documents or conversations
        return good, chat.completions([item.record.text for item in good]), []
    try:
        return good, chat.encode_flat([item.record.turns for item in good]), []
    except ConfigError:  # one of them is refused: which?
        usable, flats, refused = [], [], []
        for item in good:
            try:
                flats.append(chat.encode_flat([item.record.turns]))
                usable.append(item)
            except ConfigError as error:
                refused.append((item, str(error)))
        return usable, Flat.join(flats), refused


def _chunk(
    reader: Reader, usable: list[_Good], flat: Flat, faults: list[RefusedRow], unread: Counter[str]
) -> Chunk:
    ids = [item.record.id for item in usable]
    start = len(str(reader.folder.root / "x")) - 1  # of pictures' names in their paths
    pictures = [_paths(item.record, start) for item in usable]
    records = np.zeros(len(usable), RECORD)
    records["size"] = np.diff(flat.ends, prepend=0)
    records["images"] = [len(item.images) for item in usable]
    records["row"] = [item.row for item in usable]
    records["language"] = [reader.languages.index(item.record.language) for item in usable]
    counts = np.array([_count_text(item.record) for item in usable], np.int32).reshape(-1, 3)
    records["words"], records["characters"], records["answers"] = counts.T
    records["tokens"] = flat.ends
    records["hashes"] = np.cumsum(records["images"])
    records["id"] = np.cumsum([_bytes(key) for key in ids])
    records["pictures"] = np.cumsum([_bytes(paths) for paths in pictures])
    _measure(records, flat.trained, flat.tokens == reader.chat.image_token)
    seen = [image for item in usable for image in item.images]
    digests = b"".join([digest(i.record.id.encode()) + digest(i.content) for i in usable])
    return Chunk(
        records,
        flat.tokens,
        flat.trained,
        np.array([image.hash for image in seen], np.uint64),
        np.array([image.size for image in seen], np.int32).reshape(-1, 2),
        "".join(ids).encode(),
        np.frombuffer(digests, np.uint64).reshape(-1, 2),
        "".join(pictures).encode(),
        faults,
        dict(unread),
        _pairs(usable) if reader.paired else np.zeros(0, np.uint64),
    )


def _pairs(usable: list[_Good]) -> UInt64[np.ndarray, "n"]:
    """A digest of the value of each record by which it is paired."""
    none = NO_VALUE.to_bytes(8)
    values = [none if item.pair is None else digest(item.pair.encode()) for item in usable]
    return np.frombuffer(b"".join(values), np.uint64)


def _content(record: Record) -> bytes:
    """All that a record holds but its id; no text holds the NUL that separates things here."""
    data = f"{record.language}\0{record.text}"
    for role, parts in record.turns:
        data += "\0\0" + role
        for part in parts:
            data += "\0\0\0" if part is IMAGE else f"\0{part}"
    for image in record.images:
        data += f"\0{digest(image).hex() if isinstance(image, bytes) else image}"
    return data.encode()


def _measure(
    records: np.ndarray, weights: Bool[np.ndarray, "t"], is_image: Bool[np.ndarray, "t"]
) -> None:
    """Fills in `first`, `before`, `last` and `trained`, see RECORD.

    Args:
        records: with `size` and `tokens`, the ends of the records in what follows.
        weights: of all tokens, records end to end; an image is one token.
        is_image: whether a token is an image.
    """
    size, start = records["size"], records["tokens"] - records["size"]
    position = np.arange(len(weights)) - np.repeat(start, size)
    targets = weights & (position > 0)  # a record's first token is nobody's target
    if not len(records):
        return
    records["first"] = np.minimum.reduceat(np.where(targets, position, len(weights)), start)
    records["first"] = np.minimum(records["first"], size)
    records["last"] = np.maximum.reduceat(np.where(is_image, position, -1), start)
    records["trained"] = np.add.reduceat(weights, start, dtype=np.int32)
    early = is_image & (position < np.repeat(records["first"], size))
    records["before"] = np.add.reduceat(early, start, dtype=np.int32)


def _paths(record: Record, start: int) -> str:
    """Image paths in the image folder, each with a NUL behind it."""
    names = ["" if isinstance(image, bytes) else image[start:] for image in record.images]
    return "\0".join((*names, ""))


def _bytes(text: str) -> int:
    """Of its UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _count_text(record: Record) -> tuple[int, int, int]:
    """(words, characters, answers) of what is trained."""
    texts = trained_texts(record)
    answers = sum(turn.role == "assistant" for turn in record.turns)
    word_count = sum(len(text.split()) for text in texts)
    return word_count, sum(map(len, texts)), answers if record.turns else 1
