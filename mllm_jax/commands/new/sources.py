"""Opens what `new --data` names: finds out how it is stored, and reads its records.

stamps.jsonl    kind json, layout llava or caption, by the columns of its first row
shards/         kind by the suffix of its files
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.images import decode
from mllm_jax.data.index.stream import image_folder
from mllm_jax.data.record_errors import RecordError, RefusedRow, refusal
from mllm_jax.data.records.fields import ImageFolder
from mllm_jax.data.records.layouts import Columns
from mllm_jax.data.records.parse import Record, read_record
from mllm_jax.data.sources.base import Source
from mllm_jax.data.sources.kinds import kind_of, open_source

# by the columns that a row of theirs has; the first that fits
BY_COLUMNS = {
    "llava": [{"conversations"}, {"messages"}],
    "cauldron": [{"texts"}],
    "pixmo_ama": [{"question", "answer"}],
    "caption": [{"caption"}],
    "conceptual_captions": [{"jpg", "txt"}],
    "wit": [{"caption_reference_description"}],
    "text": [{"text"}],
}


class Opened(NamedTuple):
    """One file or folder of `--data`."""

    name: str  # of its stream
    stream: StreamConfig
    source: Source
    columns: Columns
    folder: ImageFolder

    @property
    def images(self) -> Path:
        """Where its image paths start."""
        return Path(self.folder.root)


def open_data(path: Path, images: Path | None, language: str) -> Opened:
    """Opens one file or folder.

    Args:
        path: as given.
        images: where image paths start; None: the folder of `path`.
        language: of records that do not name their own.

    Raises:
        ConfigError: nothing is there, or it is not of a kind and layout that can be read.
    """
    require(path.exists(), f"--data {path}: no such file or folder")
    kind: Any = kind_of(path, "--data ")
    settings: dict[str, Any] = {"path": str(path), "language": language, "kind": kind}
    stream = StreamConfig(**settings, images=None if images is None else str(images))
    source = open_source(stream)
    require(len(source) > 0, f"--data {path}: no records")
    layout: Any = "text" if kind == "text" else _layout(path, source)
    stream = StreamConfig(**settings, layout=layout, images=None if images is None else str(images))
    root = image_folder(stream)
    require(root.is_dir(), f"--images {root}: no such folder")
    name = path.name if path.is_dir() else path.stem
    return Opened(name, stream, source, Columns(layout, {}), ImageFolder(root))


def _layout(path: Path, source: Source) -> str:
    try:
        row = source[0]
    except RecordError as error:
        raise ConfigError(f"{source.location(0)}: {error.reason}") from error
    for layout, alternatives in BY_COLUMNS.items():
        if any(row.keys() >= columns for columns in alternatives):
            return layout
    raise ConfigError(
        f"--data {path}: the first row has the columns {quoted(sorted(row))}; expected "
        "conversations, messages, question and answer, caption, or text"
    )


class Reading:
    """Reads every record of one source; what cannot be used ends the reading, and is named."""

    def __init__(self, data: Opened):
        self._data = data
        self.unread: Counter[str] = Counter()  # keys that nothing reads
        self.holds_pictures = False  # encoded ones in the records themselves

    def __iter__(self) -> Iterator[Record]:
        """The records in order.

        Raises:
            ConfigError: some cannot be used; the first few are named with their reasons.
        """
        source, refused = self._data.source, []
        for number in range(len(source)):
            record = self._read(number)
            if isinstance(record, RefusedRow):
                refused.append(record)
            elif not refused:
                self.holds_pictures |= any(isinstance(x, bytes) for x in record.images)
                yield record
        if refused:
            raise ConfigError(refusal(self._data.stream.path, refused, len(source)))

    def _read(self, number: int) -> Record | RefusedRow:
        data, row = self._data, None
        try:
            row = data.source[number]
            raw = data.columns(row, number)
            default = data.stream.language
            language = raw.get("language") or default
            languages = (language,) if isinstance(language, str) else ()
            record = read_record(raw, str(raw["id"]), data.folder, default, languages)
            for image in record.images:
                decode.check(image)
        except RecordError as error:
            key = data.columns.key(row or {}, number)
            return RefusedRow(number, key, data.source.location(number), error.code, error.reason)
        self.unread.update(raw.get("unread", ()))
        return record
