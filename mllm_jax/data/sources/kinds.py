"""Opens the source that a stream names. Imports the libraries of all kinds."""

from pathlib import Path

from mllm_jax.common.errors import require
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.sources.array_record_file import ArrayRecordSource
from mllm_jax.data.sources.base import Source
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.data.sources.shards import Listing, Options
from mllm_jax.data.sources.tables import ArrowSource, ParquetSource
from mllm_jax.data.sources.text import TextSource
from mllm_jax.data.sources.tfds import TfdsSource
from mllm_jax.data.sources.web_dataset import WebDatasetSource

KINDS = {
    "json": JsonSource,
    "text": TextSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
    "array_record": ArrayRecordSource,
    "webdataset": WebDatasetSource,
}

SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
    ".tar": "webdataset",
    ".txt": "text",
}


def kind_of(path: Path, flag: str = "") -> str:
    """How a file, or the files of a folder, are stored, by their suffixes.

    Args:
        path: it exists.
        flag: of the command line that named it, for messages.

    Raises:
        ConfigError: no file has a known suffix, or there are files of several kinds.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    kinds = {SUFFIXES[file.suffix.lower()] for file in files if file.suffix.lower() in SUFFIXES}
    known = ", ".join(SUFFIXES)
    require(len(kinds) > 0, f"{flag}{path}: expected a file, or a folder of files, named {known}")
    require(
        len(kinds) == 1, f"{flag}{path}: holds files of {' and '.join(sorted(kinds))}; name one"
    )
    return kinds.pop()


def open_source(stream: StreamConfig) -> Source:
    """The rows that a stream names. Raises ConfigError, see the class of its kind."""
    if stream.kind == "tfds":
        return TfdsSource(stream.path, _options(stream))
    if stream.kind == "json":
        return JsonSource(stream.path)
    return KINDS[stream.kind](stream.path, _options(stream))


def list_files(stream: StreamConfig) -> Listing | None:
    """The files that a stream would read now; None for TFDS, whose own description lists them.

    Raises:
        ConfigError: see `list_shards`.
    """
    if stream.kind == "tfds":
        return None
    return KINDS[stream.kind].listing(stream.path, _options(stream))


def _options(stream: StreamConfig) -> Options:
    images = None if stream.images is None else Path(stream.images)
    return Options(stream.split, stream.links, images)
