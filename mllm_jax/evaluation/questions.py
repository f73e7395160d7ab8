"""Whole files of records, for evaluation: every one is read, a bad one ends the load."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.images import decode
from mllm_jax.data.index.stream import image_folder
from mllm_jax.data.record_errors import RecordError, RefusedRow, refusal
from mllm_jax.data.records.fields import ImageFolder, is_name
from mllm_jax.data.records.layouts import Columns
from mllm_jax.data.records.parse import Record, read_record
from mllm_jax.data.sources.json_file import JsonSource

NAMED_KEYS = 8  # unread keys that are told
READERS = 16  # threads that look at image files


def load_records(name: str, stream: StreamConfig, languages: tuple[str, ...]) -> Sequence[Record]:
    """All records of a LLaVA JSON or JSONL file.

    Image files are opened far enough to see that they are images.

    Args:
        name: the stream's name in the mixture, for messages.
        stream: file, image folder and default language.
        languages: every language a record may have.

    Raises:
        ConfigError: the file cannot be read, it holds no record, or some records are refused; the
            first few are named with their reasons.
    """
    path = Path(stream.path)
    require(path.is_file(), f"data.streams.{name}.path: {path}: no such file")
    folder = image_folder(stream)
    require(folder.is_dir(), f"data.streams.{name}.images: {folder}: no such folder")
    source, columns = JsonSource(path), Columns("llava", stream.columns, stream.ignore)
    inside = ImageFolder(folder, stream.links)

    unread: list[str] = []  # keys, as often as they hold something

    def read(row: int) -> Record | RefusedRow:
        values = None
        try:
            values = source[row]
            raw = columns(values, row)
            record = read_record(raw, str(raw["id"]), inside, stream.language, languages)
            for image in record.images:
                decode.check(image)
        except RecordError as error:
            key = columns.key(values or {}, row)
            return RefusedRow(row, key, source.location(row), error.code, error.reason)
        unread.extend(raw.get("unread", ()))
        return record

    with ThreadPoolExecutor(READERS) as pool:
        items = list(pool.map(read, range(len(source))))
    refused = [item for item in items if isinstance(item, RefusedRow)]
    if refused:
        raise ConfigError(refusal(stream.path, refused, len(items)))
    if unread:
        counts = Counter(unread).most_common(NAMED_KEYS)
        names = ", ".join(f"{key} ({count:,})" for key, count in counts)
        print(f"{stream.path}: keys that nothing reads: {names}", flush=True)
    require(len(items) > 0, f"{stream.path}: no records (data.streams.{name}.path)")
    return [item for item in items if isinstance(item, Record)]


def languages_in(path: str | Path) -> tuple[str, ...]:
    """Languages that the records of a file name, in order of appearance.

    What cannot be the name of one is left to `load_records`, which names the record.

    Raises:
        ConfigError: the file is missing or is not JSON.
    """
    source, named = JsonSource(path), []
    for row in range(len(source)):
        try:
            named.append(source[row].get("language"))
        except RecordError:  # `load_records` names it
            continue
    names = (name for name in named if isinstance(name, str) and is_name(name))
    return tuple(dict.fromkeys(names))
