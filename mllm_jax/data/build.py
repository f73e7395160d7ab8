"""Source -> index folder: every row read, checked and tokenised once, on all cores.

The rows are read in parts of CHUNK by worker processes; a part that is on disk is not made again,
so a build that was stopped goes on. One writer, bounded memory: a part travels as arrays.
"""

import gc
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from mllm_jax.data import images
from mllm_jax.data.chat import Chat
from mllm_jax.data.columns import Columns
from mllm_jax.data.faults import Fault, FaultLine
from mllm_jax.data.progress import bar
from mllm_jax.data.records import Record, read_record
from mllm_jax.data.sources.base import Source
from mllm_jax.data.spans import Encoded
from mllm_jax.data.store import RECORD, Part, join_parts, load_part, save_part
from mllm_jax.errors import ConfigError, RunError

CHUNK = 4096  # rows of a part


class Reader(NamedTuple):
    """Everything that makes records of rows; sent to every worker once."""

    name: str  # of the stream
    source: Source
    columns: Columns
    chat: Chat  # made with patches=1
    folder: Path  # where image paths start
    language: str | None
    languages: tuple[str, ...]
    max_pixels: int
    decode: bool  # images to their end, or only their headers


def build(reader: Reader, folder: Path, workers: int) -> None:
    """Writes the arrays of an index into `folder`; its parts stand in `folder/parts` meanwhile.

    Args:
        reader: the stream.
        folder: of the index; parts of an earlier try with the same rows are taken as they are.
        workers: processes; 1 reads in this one.

    Raises:
        RunError: a worker was killed.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    ranges = [
        range(start, min(start + CHUNK, len(reader.source)))
        for start in range(0, len(reader.source), CHUNK)
    ]
    files = [parts / f"{rows.start:012d}.npz" for rows in ranges]
    missing = [(r, f) for r, f in zip(ranges, files, strict=True) if not f.is_file()]
    done = sum(len(rows) for rows in ranges) - sum(len(rows) for rows, _ in missing)
    if len(missing) > 1:  # long enough to be told, also where there is no terminal
        left = len(reader.source) - done
        print(f"reading data.streams.{reader.name}: {left:,} rows, into {folder}", flush=True)
    with bar(total=len(reader.source), initial=done, desc=f"reading {reader.name}") as shown:
        for rows in _work(reader, missing, min(workers, len(missing))):
            shown.update(len(rows))
    join_parts(map(load_part, files), folder)
    shutil.rmtree(parts)


def _work(reader: Reader, todo: list[tuple[range, Path]], workers: int) -> Iterator[range]:
    """Makes the parts, in any order; yields the rows of each that is on disk."""
    if workers <= 1:
        for rows, file in todo:
            save_part(read_part(reader, rows), file)
            yield rows
        return
    # spawned, not forked: this process may run threads of an accelerator
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (reader,)) as pool:
        waiting, left = [], iter(todo)
        while True:
            waiting += [
                (rows, pool.submit(_read_and_save, rows, file))
                for rows, file in islice(left, 2 * workers - len(waiting))
            ]
            if not waiting:
                return
            rows, result = waiting.pop(0)
            try:
                result.result()
            except BrokenProcessPool as error:
                raise RunError(
                    f"data.streams.{reader.name}: a worker process that read rows from "
                    f"{rows.start} on was killed (out of memory?); start again to go on from here, "
                    "with fewer workers"
                ) from error
            yield rows


_reader: Reader | None = None  # of a worker process


def _start(reader: Reader) -> None:
    global _reader
    _reader = reader
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a worker
    # nothing here makes circles but errors: between parts is soon enough to look for them
    gc.freeze()
    gc.disable()


def _read_and_save(rows: range, file: Path) -> None:
    assert _reader is not None
    save_part(read_part(_reader, rows), file)
    gc.collect()


# ------------------------------------------------------------------------------------------- a part


class _Good(NamedTuple):
    row: int
    record: Record
    hashes: list[int]


def read_part(reader: Reader, rows: range) -> Part:
    """Reads and tokenises these rows; what is wrong with a row is noted, never raised."""
    good: list[_Good] = []
    faults: list[FaultLine] = []
    # several questions about one picture stand side by side: it is looked at once
    look = lru_cache(maxsize=len(rows))(partial(_look, reader))
    for row in rows:
        key = str(row)
        try:
            raw = reader.columns(reader.source[row], row)
            key = str(key if raw.get("id") is None else raw["id"])
            record = read_record(raw, key, reader.folder, reader.language, reader.languages)
            hashes = [
                look(image) if isinstance(image, str) else _look(reader, image)
                for image in record.images
            ]
        except Fault as fault:
            faults.append(FaultLine(row, key, reader.source.where(row), fault.code, fault.reason))
        else:
            good.append(_Good(row, record, hashes))
    encoded = _encode(reader.chat, [item.record for item in good])
    kept: list[tuple[_Good, Encoded]] = []
    for item, tokens in zip(good, encoded, strict=True):
        if isinstance(tokens, ConfigError):
            where = reader.source.where(item.row)
            faults.append(FaultLine(item.row, item.record.id, where, "template", str(tokens)))
        else:
            kept.append((item, tokens))
    return _part(reader, kept, sorted(faults))


def _look(reader: Reader, image: str | bytes) -> int:
    """The image's hash, or 0 where only its header is looked at. Raises Fault."""
    if not reader.decode:
        images.check(image, reader.max_pixels)
        return 0
    return images.fingerprint(images.decode(image, reader.max_pixels))


def _encode(chat: Chat, records: list[Record]) -> list[Encoded | ConfigError]:
    """Tokens of every record, or why it has none."""
    texts = [n for n, record in enumerate(records) if not record.turns]
    talks = [n for n, record in enumerate(records) if record.turns]
    done: dict[int, Encoded | ConfigError] = {}
    done |= zip(texts, chat.completions([records[n].text for n in texts]), strict=True)
    try:
        done |= zip(talks, chat.encode_batch([records[n].turns for n in talks]), strict=True)
    except ConfigError:  # one of them is refused: which?
        for n in talks:
            try:
                done[n] = chat.encode(records[n].turns)
            except ConfigError as error:
                done[n] = error
    return [done[n] for n in range(len(records))]


def _part(reader: Reader, kept: list[tuple[_Good, Encoded]], faults: list[FaultLine]) -> Part:
    ids = [item.record.id.encode() for item, _ in kept]
    inside = len(str(reader.folder / "x")) - 1  # where names of pictures start in their paths
    pictures = [_paths(item.record, inside) for item, _ in kept]
    empty = np.zeros(0)
    tokens = np.concatenate([empty, *(e.tokens for _, e in kept)]).astype(np.int32)
    weights = np.concatenate([empty, *(e.weights for _, e in kept)]).astype(np.bool_)
    seats = np.concatenate([empty, *(e.seats for _, e in kept)]) >= 0
    records = np.zeros(len(kept), RECORD)
    records["size"] = [len(encoded.tokens) for _, encoded in kept]
    records["images"] = [len(item.record.images) for item, _ in kept]
    records["row"] = [item.row for item, _ in kept]
    records["language"] = [reader.languages.index(item.record.language) for item, _ in kept]
    words = [_words(item.record) for item, _ in kept]
    records["words"], records["answers"] = np.array(words, np.int32).reshape(-1, 2).T
    records["tokens"] = np.cumsum(records["size"])
    records["hashes"] = np.cumsum(records["images"])
    records["id"] = np.cumsum([len(key) for key in ids])
    records["pictures"] = np.cumsum([len(paths) for paths in pictures])
    _measure(records, weights, seats)
    hashes = np.array([h for item, _ in kept for h in item.hashes], np.uint64)
    return Part(records, tokens, weights, hashes, b"".join(ids), b"".join(pictures), faults)


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


def _paths(record: Record, start: int) -> bytes:
    """Image paths in the image folder, each with a NUL behind it."""
    names = ["" if isinstance(image, bytes) else image[start:] for image in record.images]
    return "".join(f"{name}\0" for name in names).encode()


def _words(record: Record) -> tuple[int, int]:
    """(words, answers) of what is trained."""
    if not record.turns:
        return len(record.text.split()), 1
    answers = [turn for turn in record.turns if turn.role == "assistant"]
    texts = (part for turn in answers for part in turn.parts if isinstance(part, str))
    return sum(len(text.split()) for text in texts), len(answers)
