"""Opens the index of every stream, from the cache on disk or built: where a run's data begins.

An index is stored beside the stream's data, in a folder named by what decides its content:

    captions.json.index/3f9c.../meta.json      key, files with sizes and digests
                                records.npy, tokens.bin, ...   see store

Another tokenizer, format or column is another folder; changed data is detected and read again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common import failures
from mllm_jax.common.errors import ConfigError, closest, one_line, quoted, require
from mllm_jax.common.folders import LOCK
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.locks import WAIT, claimed
from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.switches import Switches
from mllm_jax.data.chat.templates import format_for
from mllm_jax.data.index.build import Reader, build
from mllm_jax.data.index.freshness import (
    changed,
    content_digest,
    look,
    read_meta,
    same_content,
    write_meta,
)
from mllm_jax.data.index.storage import Store, mark_duplicates
from mllm_jax.data.index.stream import StreamIndex, image_folder
from mllm_jax.data.record_errors import CODES, NEVER_SKIPPED
from mllm_jax.data.records.fields import ImageFolder
from mllm_jax.data.records.layouts import Columns
from mllm_jax.data.records.parse import read_record
from mllm_jax.data.sources.kinds import list_files, open_source
from mllm_jax.data.sources.shards import Listing

VERSION = 8  # of the content of an index; another version is another key


class Mixture(NamedTuple):
    """What `open_streams` needs besides the config's own section."""

    data: DataConfig
    model: ModelConfig
    tokenizer: Any  # as `load_tokenizer` gives it
    workers: int = 1  # processes that read rows where an index is missing
    decode: bool = False  # every image to its end, as `prepare` does, or only its header
    build: bool = True  # where an index is missing or stale; otherwise that is refused


def open_streams(mixture: Mixture) -> list[StreamIndex]:
    """The streams of a mixture, in the config's order.

    Raises:
        ConfigError: a path, a format or a record is wrong, see `StreamIndex`; an index is missing
            and may not be built.
        RunError: a worker process was killed.
    """
    data, model = mixture.data, mixture.model
    image_token = model.image_token if model.patches else None
    chats = {}
    for stream in data.streams.values():
        key = stream.format, Switches.of(stream)
        if key not in chats:
            template = format_for(stream.format, mixture.tokenizer)
            chats[key] = Chat(mixture.tokenizer, template, image_token, 1, switches=key[1])
            chats[key].check_prompts()
    opened = []
    tokenizer = _digest(mixture.tokenizer.backend_tokenizer.to_str().encode())
    for number, (name, stream) in enumerate(data.streams.items()):
        _check_skip(name, stream)
        reader = _Opener(name, mixture, chats[stream.format, Switches.of(stream)], tokenizer)
        folder, notes, digest = _folder(reader, mixture)
        store = Store(folder)
        opened.append(StreamIndex(number, name, store, data, model, reader.pictures, notes, digest))
    return opened


def check_paths(name: str, stream: StreamConfig) -> None:
    """Looks whether a stream's data is there, and reads nothing of it.

    Raises:
        ConfigError: no such file or folder.
    """
    location, path, images = f"data.streams.{name}", Path(stream.path), image_folder(stream)
    there = path.exists() or (stream.kind == "tfds" and path.parent.exists())  # it names a split
    hint = "" if stream.hub is None else "; run `mllm-jax prepare --config FILE` to fetch it"
    require(there, f"{location}.path: {path}: no such file{hint}")
    require(images.is_dir(), f"{location}.images: {images}: no such folder")
    for link in stream.links:
        require(Path(link).is_dir(), f"{location}.links: {quoted(link)}: no such folder")


class _Opener:
    """Opens a stream's source when something has to be read from it."""

    def __init__(self, name: str, mixture: Mixture, chat: Chat, tokenizer: str):
        """`tokenizer` is its digest: writing it out takes a while, so once for all streams."""
        self.name, self._mixture, self._chat, self._tokenizer = name, mixture, chat, tokenizer
        self.stream = mixture.data.streams[name]
        check_paths(name, self.stream)
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        if self._reader is None:
            data = self._mixture.data
            self._reader = Reader(
                self.name,
                open_source(self.stream),
                Columns(
                    "text" if self.stream.is_text else self.stream.layout,
                    self.stream.columns,
                    self.stream.ignore,
                    self.stream.pairs,
                ),
                self._chat,
                ImageFolder(image_folder(self.stream), self.stream.links),
                self.stream.language,
                data.languages,
                data.max_pixels,
                self._mixture.decode,
                self.stream.pairs is not None,
            )
        return self._reader

    @property
    def key(self) -> dict[str, Any]:
        """Everything but the data itself that decides the content of the index."""
        data = self._mixture.data
        return {
            "version": VERSION,
            "tokenizer": self._tokenizer,
            "template": _digest(format_for(self.stream.format, self._mixture.tokenizer).encode()),
            "switches": Switches.of(self.stream)._asdict(),
            "eos_token": self._mixture.tokenizer.eos_token,
            "image_token": self._mixture.model.image_token if self._mixture.model.patches else None,
            "kind": self.stream.kind,
            "split": self.stream.split,
            "images": _from(_base(self.stream), image_folder(self.stream)),
            "links": list(self.stream.links),
            "layout": self.stream.layout,
            "columns": self.stream.columns,
            "ignore": sorted(self.stream.ignore),
            "language": self.stream.language,
            "languages": list(data.languages),
            "max_pixels": data.max_pixels,
            **({} if self.stream.pairs is None else {"pairs": self.stream.pairs}),
        }

    def pictures(self, row: int) -> tuple[str | bytes, ...]:
        """The images of a row that holds them itself."""
        r = self.reader
        raw = r.columns(r.source[row], row)
        return read_record(raw, str(row), r.folder, r.language, r.languages).images


def _folder(opener: _Opener, mixture: Mixture) -> tuple[Path, list[str], str]:
    """The stream's index folder, what of the data it does not hold, the digest of what it does.

    It is built when it is missing, damaged, stale, or not as deep as asked for.
    """
    key = opener.key
    stream, name = opener.stream, _digest(json.dumps(key, sort_keys=True).encode())[:16]
    home = Path(stream.index_home)
    if mixture.data.index is not None:
        home = Path(mixture.data.index) / opener.name
    folder, listing = home / name, list_files(stream)
    meta = _read(folder, listing, stream, mixture.decode)
    if isinstance(meta, str):
        require(
            mixture.build,
            f"{home}: no length index for data.streams.{opener.name} and this tokenizer, format "
            f"and data ({meta}); run `mllm-jax prepare --config FILE` once before",
        )
        with _alone(home, opener.name, WAIT if mixture.decode else float("inf")):
            meta = _read(folder, listing, stream, mixture.decode)  # another run may have built it
            if isinstance(meta, str):
                if folder.is_dir():
                    print(one_line(f"{folder}: {meta}; it is built again"), flush=True)
                meta = _build(opener.reader, _base(stream), key, folder, mixture.workers)
    notes = [] if listing is None else listing.notes
    return folder, [*notes, *meta["notes"]], content_digest(meta["files"])


def _read(
    folder: Path, listing: Listing | None, stream: StreamConfig, decode: bool
) -> dict[str, Any] | str:
    """The meta.json of an index of the data as it is now; or why there is none, or none as deep."""
    if not folder.is_dir():
        return "missing"
    meta = read_meta(folder)
    if isinstance(meta, str):
        return f"damaged, {meta}"
    different = changed(meta["files"], None if listing is None else listing.files, _base(stream))
    if different is not None:
        return f"stale, {different} changed"
    return meta if meta["decoded"] or not decode else "its images were not decoded"


@contextmanager
def _alone(home: Path, name: str, wait: float) -> Iterator[None]:
    """One process at a time builds the indexes of a folder.

    Raises:
        ConfigError: another one does, and this one has waited for `wait` seconds.
    """
    with ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                claimed(home / LOCK, f"data.streams.{name}: its index {home}", wait)
            )
        except OSError as error:
            raise ConfigError(
                f"data.streams.{name}: its index cannot be written to {home} "
                f"({failures.reason(error)}); name another folder under data.index"
            ) from error
        yield


def _base(stream: StreamConfig) -> Path:
    """What the names of a stream's files are relative to, so that data may move with its index."""
    path = Path(stream.path)
    return path if path.is_dir() else path.parent


def _from(base: Path, folder: Path) -> str:
    """Where a folder is, seen from the data, so that both may move together."""
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(base))


def _build(
    reader: Reader, base: Path, key: dict[str, Any], folder: Path, workers: int
) -> dict[str, Any]:
    """Builds in a temporary folder and renames it; reuses finished chunks of an earlier build."""
    files = [look(file, base) for file in reader.source.files]
    beside = folder.with_name(f".{folder.name}.partial")
    mark = beside / "mark.json"
    begun = {
        "key": key,
        "files": files,
        "decoded": reader.decode,
        "folder": str(reader.folder.root),
        "notes": list(reader.source.notes),
    }
    if beside.is_dir() and not _same_work(mark, begun):
        shutil.rmtree(beside)
    beside.mkdir(exist_ok=True)
    write_json(mark, begun)
    try:
        build(reader, beside, workers)
    except ConfigError:  # of the data: what was read of it will not be used again
        shutil.rmtree(beside)
        raise
    names = mark_duplicates(beside, reader.source.location)
    if names:
        print(
            f"data.streams.{reader.name}: {len(names):,} records have the id of an earlier one and "
            f"other content; they are numbered, as {quoted(names[0], 60)}",
            flush=True,
        )
    mark.unlink()
    write_meta(beside, begun)
    if folder.is_dir():
        shutil.rmtree(folder)
    beside.rename(folder)
    return begun


def _same_work(mark: Path, begun: dict[str, Any]) -> bool:
    """Whether an earlier build read the same content in the same way; files may be touched."""
    try:
        earlier = read_json(mark)
    except ConfigError:  # it was stopped before it wrote one, or the disk lost it
        return False
    same = all(earlier.get(name) == begun[name] for name in ("key", "decoded", "folder"))
    return same and same_content(earlier.get("files"), begun["files"])


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _check_skip(name: str, stream: StreamConfig) -> None:
    for code in stream.skip:
        location = f"data.streams.{name}.skip.{code}"
        require(code not in NEVER_SKIPPED, f"{location}: {CODES.get(code)}")
        near = closest(code, CODES)
        hint = f"did you mean {near!r}?" if near else f"allowed are {', '.join(CODES)}"
        require(code in CODES, f"{location}: no such record error; {hint}")
