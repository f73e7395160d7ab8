"""Reads prepared TensorFlow Datasets by example number, without TensorFlow.

A dataset counts as prepared when `download_and_prepare` wrote it with file_format="array_record";
other formats have no random access. Images stay encoded: they are decoded where all others are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.common.errors import ConfigError, one_line, quoted, require
from mllm_jax.common.json_file import read_json
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.array_record_file import count_records
from mllm_jax.data.sources.base import Row
from mllm_jax.data.sources.shards import OPTIONS, Options

FORMAT = "array_record"
TFDS = "tensorflow_datasets."
# what TFDS ends with where a description is wrong; for odd types it imports TensorFlow
_WRONG = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError)
DESCRIPTIONS = ("dataset_info.json", "features.json")


class TfdsSource:
    """The examples of one split of a prepared dataset.

    Values: texts are str, images encoded bytes, class labels numbers, tensors lists; a sequence of
    feature dicts, which TFDS stores as a dict of lists, is a list of dicts again.
    """

    def __init__(self, path: str | Path, options: Options = OPTIONS):
        """Reads what the dataset says about itself; the shards are opened by the first row.

        Args:
            path: folder of the dataset's version, as ".../ai2d/1.0.0".
            options: the split as TFDS names it, "train", "train[:90%]"; may be left out where
                there is one.

        Raises:
            ConfigError: TFDS is not installed, the folder does not hold a prepared dataset with
                random access, there is no such split or it must be named, or a shard is missing.
        """
        self.path = Path(path)
        for name in DESCRIPTIONS:
            require(
                (self.path / name).is_file(),
                f"{path}: no {name} in it, so no dataset that TFDS prepared; give the folder of "
                "its version, as my_dataset/1.0.0",
            )
        info = _builder(self.path).info
        formats = sorted(format.value for format in info.available_file_formats())
        require(
            FORMAT in formats,
            f"{self.path}: prepared as {', '.join(formats)}, which has no random access; prepare "
            f"it with file_format={FORMAT!r}",
        )
        self.split = _choose(self.path, options.split, list(info.splits))
        parts = _instructions(self.path, self.split, info)
        for part in parts:
            file = Path(part.filename)
            require(file.is_file(), f"{file}: no such file")
            count = count_records(file)
            require(
                count == part.examples_in_shard,
                f"{file}: holds {count} examples, and dataset_info.json says "
                f"{part.examples_in_shard}",
            )
        self._shards = [(Path(part.filename), part.skip) for part in parts]
        self.files = [self.path / name for name in DESCRIPTIONS]
        self.files += dict.fromkeys(file for file, _ in self._shards)
        self.notes: Sequence[str] = _left_out(self.path, info, parts)
        self._starts = np.cumsum([0, *(part.take for part in parts)], dtype=np.int64)
        self._opened: tuple[Any, Any, Any] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            if self._opened is None:
                self._opened = _open(self.path, self.split)
            kinds, features, examples = self._opened
            return _plain(examples[int(number)], features, kinds)
        except (RuntimeError, *_WRONG) as error:  # of its readers: damaged, or of other features
            reason = one_line(str(error), 200)
            raise ConfigError(f"{self.location(number)}: cannot be read: {reason}") from error

    def location(self, number: int) -> str:
        """The file and the example in it, from 0: "ai2d-train.array_record-00000-of-00001[12]"."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        file, skipped = self._shards[shard]
        return f"{file}[{number - int(self._starts[shard]) + skipped}]"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def _library() -> Any:
    """tensorflow_datasets, an optional extra that is imported when a stream asks for it."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError(
            f"a stream of kind tfds needs TensorFlow Datasets ({error}); "
            'pip install "mllm-jax[tfds]"'
        ) from error
    return tensorflow_datasets


def _builder(path: Path) -> Any:
    tfds = _library()
    _check_classes(path / "features.json")
    from google.protobuf.json_format import ParseError  # which TFDS lets through

    try:
        return tfds.builder_from_directory(path)
    except (ParseError, *_WRONG) as error:
        reason = one_line(str(error), 200)
        raise ConfigError(f"{path}: not a dataset that TFDS can read: {reason}") from error


def _check_classes(file: Path) -> None:
    """Refuses features that are not TFDS' own: it imports whatever module the file names."""
    pending: list[Any] = [read_json(file)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            name = value.get("pythonClassName", TFDS)
            require(
                isinstance(name, str) and name.startswith(TFDS),
                f"{file}: pythonClassName={quoted(name)}; only features of {TFDS}* are read",
            )
        pending += (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        )


def _choose(path: Path, split: str | None, splits: list[str]) -> str:
    if split is None:
        require(
            len(splits) == 1,
            f"{path}: holds {' and '.join(splits)}, and a stream reads one split; choose by "
            "data.streams.*.split",
        )
        return splits[0]
    return split


def _instructions(path: Path, split: str, info: Any) -> list[Any]:
    """The files of a split, with how many examples to skip and to take in each."""
    try:
        return info.splits[split].file_instructions
    except (AssertionError, *_WRONG) as error:
        raise ConfigError(
            f"{path}: no split {split!r}; there are {', '.join(info.splits)}, and slices of them "
            "as train[:90%]"
        ) from error


def _left_out(path: Path, info: Any, parts: list[Any]) -> list[str]:
    """Notes on splits of which nothing is read."""
    files = {Path(part.filename).name for part in parts}
    others = [
        f"{name} ({split.num_examples} examples)"
        for name, split in info.splits.items()
        if not files & set(split.filenames)
    ]
    return [f"{path}: not read: the splits {', '.join(others)}"] if others else []


def _open(path: Path, split: str) -> tuple[Any, Any, Any]:
    """TFDS' kinds of features, the features of a dataset, and a split's examples by number."""
    tfds, builder = _library(), _builder(path)

    class Encoded(tfds.decode.SkipDecoding):
        """Leaves images as the bytes they are, in sequences too, where TFDS' class does not."""

        def decode_batch_example_np(self, batch: Any) -> Any:
            return batch

        def decode_ragged_example_np(self, batch: Any) -> Any:
            return batch

    features = builder.info.features
    decoders = _decoders(features, tfds.features, Encoded)
    examples = builder.as_data_source(split, decoders=decoders, file_format=FORMAT)
    return tfds.features, features, examples


def _decoders(feature: Any, kinds: Any, encoded: type) -> Any:
    """The features' tree with a decoder at every image, and nothing where there is none."""
    if isinstance(feature, kinds.Image):
        return encoded()
    if isinstance(feature, kinds.FeaturesDict):
        decoders = {name: _decoders(feature[name], kinds, encoded) for name in feature}
        return {name: decoder for name, decoder in decoders.items() if decoder is not None} or None
    if isinstance(feature, kinds.Sequence):
        return _decoders(feature.feature, kinds, encoded)
    return None


def _plain(value: Any, feature: Any, kinds: Any) -> Any:
    """A value as TFDS reads it -> texts, bytes, numbers, lists and dicts of those."""
    if isinstance(feature, kinds.FeaturesDict):
        return {name: _plain(value[name], feature[name], kinds) for name in feature}
    if isinstance(feature, kinds.Sequence):
        inner = feature.feature
        if isinstance(inner, kinds.FeaturesDict):  # {"a": [1, 2]} -> [{"a": 1}, {"a": 2}]
            columns = zip(*(value[name] for name in inner), strict=True)
            value = [dict(zip(inner, row, strict=True)) for row in columns]
        return [_plain(one, inner, kinds) for one in value]
    if isinstance(feature, kinds.Text):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordError("text", f"not UTF-8 text ({error.reason})") from error
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
