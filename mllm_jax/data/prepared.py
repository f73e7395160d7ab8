"""Stream -> its index, found fresh on disk or built: where a run's data begins.

An index stands beside the stream's data, in a folder named by what decides its content:

    captions.json.index/3f9c.../meta.json      key, files with sizes and digests
                                records.npy, tokens.bin, ...   see store

Another tokenizer, format or column is another folder; changed data is noticed and read again.
"""

import difflib
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.data.build import Reader, build
from mllm_jax.data.chat import Chat
from mllm_jax.data.columns import Columns
from mllm_jax.data.faults import CODES, NEVER_SKIPPED
from mllm_jax.data.index import StreamIndex, image_folder
from mllm_jax.data.record_fields import ImageFolder
from mllm_jax.data.records import read_record
from mllm_jax.data.sources.kinds import open_source
from mllm_jax.data.sources.shards import split_of
from mllm_jax.data.store import Store, mark_duplicates
from mllm_jax.data.templates import TEMPLATES
from mllm_jax.data_config import DataConfig, StreamConfig
from mllm_jax.errors import ConfigError, require
from mllm_jax.json_file import read_json, write_json
from mllm_jax.model_config import ModelConfig

VERSION = 3  # of what stands in an index; another version is another key
_BLOCK = 2**22


class Mixture(NamedTuple):
    """What `open_mixture` needs besides the config's own section."""

    data: DataConfig
    model: ModelConfig
    tokenizer: Any  # as `load_tokenizer` gives it
    workers: int = 1  # processes that read rows where an index is missing
    decode: bool = False  # every image to its end, as `prepare` does, or only its header
    build: bool = True  # where an index is missing or stale; otherwise that is refused


def open_mixture(mixture: Mixture) -> list[StreamIndex]:
    """The streams of a mixture, in the config's order.

    Raises:
        ConfigError: a path, a format or a record is wrong, see `StreamIndex`; an index is missing
            and may not be built.
        RunError: a worker process was killed.
    """
    data, model = mixture.data, mixture.model
    image_token = model.image_token if model.patches else None
    formats = sorted({stream.format for stream in data.streams.values()})
    chats = {f: Chat(mixture.tokenizer, TEMPLATES[f], image_token, patches=1) for f in formats}
    for chat in chats.values():
        chat.check_prompts()
    opened = []
    tokenizer = _digest(mixture.tokenizer.backend_tokenizer.to_str().encode())
    for number, (name, stream) in enumerate(data.streams.items()):
        _check_skip(name, stream)
        reader = _Opener(name, mixture, chats[stream.format], tokenizer)
        store = Store(_folder(reader, mixture))
        opened.append(StreamIndex(number, name, store, data, model, reader.pictures))
    return opened


def check_paths(name: str, stream: StreamConfig) -> None:
    """Looks whether a stream's data is there, and reads nothing of it.

    Raises:
        ConfigError: no such file or folder.
    """
    where, path, images = f"data.streams.{name}", Path(stream.path), image_folder(stream)
    there = path.exists() or (stream.kind == "tfds" and path.parent.exists())  # it names a split
    hint = "" if stream.hub is None else "; run `mllm-jax prepare --config FILE` to fetch it"
    require(there, f"{where}.path: {path}: no such file{hint}")
    require(images.is_dir(), f"{where}.images: {images}: no such folder")


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
                Columns("text" if self.stream.is_text else self.stream.layout, self.stream.columns),
                self._chat,
                ImageFolder(image_folder(self.stream)),
                self.stream.language,
                data.languages,
                data.max_pixels,
                self._mixture.decode,
            )
        return self._reader

    @property
    def key(self) -> dict[str, Any]:
        """Everything but the data itself that decides what stands in the index."""
        data = self._mixture.data
        return {
            "version": VERSION,
            "tokenizer": self._tokenizer,
            "template": _digest(TEMPLATES[self.stream.format].encode()),
            "image_token": self._mixture.model.image_token if self._mixture.model.patches else None,
            "kind": self.stream.kind,
            "split": self.stream.split,
            "layout": self.stream.layout,
            "columns": self.stream.columns,
            "language": self.stream.language,
            "languages": list(data.languages),
            "max_pixels": data.max_pixels,
        }

    def pictures(self, row: int) -> tuple[str | bytes, ...]:
        """The images of a row that holds them itself."""
        r = self.reader
        raw = r.columns(r.source[row], row)
        return read_record(raw, str(row), r.folder, r.language, r.languages).images


def _folder(opener: _Opener, mixture: Mixture) -> Path:
    """The stream's index folder; built when it is missing, stale, or not as deep as asked for."""
    key = opener.key
    stream, name = opener.stream, _digest(json.dumps(key, sort_keys=True).encode())[:16]
    home = Path(stream.index_home)
    if mixture.data.index is not None:
        home = Path(mixture.data.index) / opener.name
    folder = home / name
    if _is_fresh(folder, stream, mixture.decode):
        return folder
    require(
        mixture.build,
        f"{home}: no length index for data.streams.{opener.name} and this tokenizer, format and "
        "data; run `mllm-jax prepare --config FILE` once before",
    )
    with _alone(home, opener.name):
        if not _is_fresh(folder, stream, mixture.decode):  # another run may just have built it
            _build(opener.reader, _base(stream), key, folder, mixture.workers)
    return folder


def _is_fresh(folder: Path, stream: StreamConfig, decode: bool) -> bool:
    """Whether an index of the data as it is now stands there, as deep as asked for."""
    if not folder.is_dir():
        return False
    meta = read_json(folder / "meta.json")
    changed = _changed(meta["files"], stream)
    if changed:
        print(f"{folder}: stale, {changed} changed; it is built again", flush=True)
    return not changed and (meta["decoded"] or not decode)


@contextmanager
def _alone(home: Path, name: str) -> Iterator[None]:
    """One run at a time builds the indexes of a folder; others wait."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"data.streams.{name}: its index cannot be written to {home} ({error.strerror}); name "
            "another folder under data.index"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _base(stream: StreamConfig) -> Path:
    """What the names of a stream's files are relative to, so that data may move with its index."""
    path = Path(stream.path)
    return path if path.is_dir() else path.parent


def _build(reader: Reader, base: Path, key: dict[str, Any], folder: Path, workers: int) -> None:
    """Builds beside the goal and renames; what was finished of an earlier try is taken."""
    files = [_look(file, base) for file in reader.source.files]
    beside = folder.with_name(f".{folder.name}.partial")
    mark = beside / "mark.json"
    begun = {
        "key": key,
        "files": files,
        "decoded": reader.decode,
        "folder": str(reader.folder.root),
    }
    if mark.is_file() and not _same_work(read_json(mark), begun):
        shutil.rmtree(beside)
    beside.mkdir(exist_ok=True)
    write_json(mark, begun)
    build(reader, beside, workers)
    mark_duplicates(beside, reader.source.where)
    write_json(beside / "meta.json", begun)
    mark.unlink()
    if folder.is_dir():
        shutil.rmtree(folder)
    beside.rename(folder)


def _same_work(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two builds read the same content in the same way; files may have been touched."""

    def content(tree: dict[str, Any]) -> dict[str, Any]:
        return tree | {"files": [file | {"mtime_ns": 0} for file in tree["files"]]}

    return content(one) == content(other)


def _look(file: Path, base: Path) -> dict[str, Any]:
    stat = file.stat()
    return {
        "path": str(file.relative_to(base)),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "blake2b": _file_digest(file),
    }


def _changed(files: list[dict[str, Any]], stream: StreamConfig) -> str | None:
    """The first file that is new or not what it was; one that was only copied or touched is."""
    base, known = _base(stream), {was["path"] for was in files}
    if Path(stream.path).is_dir():  # of shards: is there one more?
        for suffix in sorted({Path(path).suffix for path in known}):
            for file in sorted(base.rglob(f"*{suffix}")):
                name = file.relative_to(base)
                ours = stream.split is None or split_of(name) == stream.split
                if ours and str(name) not in known and not any(p[0] == "." for p in name.parts):
                    return str(file)
    for was in files:
        file = base / was["path"]
        if not file.is_file() or file.stat().st_size != was["size"]:
            return str(file)
        if file.stat().st_mtime_ns != was["mtime_ns"] and _file_digest(file) != was["blake2b"]:
            return str(file)
    return None


def _file_digest(file: Path) -> str:
    digest = blake2b(digest_size=16)
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _check_skip(name: str, stream: StreamConfig) -> None:
    for code in stream.skip:
        where = f"data.streams.{name}.skip.{code}"
        require(code not in NEVER_SKIPPED, f"{where}: {CODES.get(code)}")
        near = difflib.get_close_matches(code, CODES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(CODES)}"
        require(code in CODES, f"{where}: no such fault; {hint}")
