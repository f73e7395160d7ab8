"""The length index: every record of a stream tokenised once at the start, kept compactly.

An image is kept as one token and widened to its seats when an example is taken, so 576 seats cost
no memory. Records that do not fit are dropped, cut or refused here, and counted; the rest of the
way sees only what fits.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mllm_jax.batch import Example
from mllm_jax.config import DataConfig
from mllm_jax.data import packing
from mllm_jax.data.chat import Chat
from mllm_jax.data.records import NAMED, Record
from mllm_jax.data.spans import Encoded, expand
from mllm_jax.errors import ConfigError, require
from mllm_jax.model_config import ModelConfig

CHUNK = 2048  # records tokenised together


class StreamIndex:
    """The usable records of one stream, numbered from 0, as examples."""

    def __init__(
        self,
        number: int,
        name: str,
        records: Sequence[Record],
        chat: Chat,
        data: DataConfig,
        model: ModelConfig,
    ):
        """Tokenises all records.

        Args:
            number: of the stream in the mixture.
            name: of the stream in the mixture.
            records: all of them, in file order.
            chat: made with `patches=1`.
            data: lengths and the policy for records that are too long.
            model: image token and patches.

        Raises:
            ConfigError: a record cannot be rendered, one is over-long and the policy is `fail`, or
                nothing is left.
        """
        self.number, self.name, self.total = number, name, len(records)
        self._length, self._patches = data.length, model.patches
        self._image = model.image_token if model.patches else None
        codes = np.array([data.languages.index(record.language) for record in records], np.int64)
        encoded = _Store(_encoded(name, records, chat), self._image, self._patches)
        fates = packing.fate(encoded.lengths, data.length, data.image_slots, data.over_long)
        self._refuse(records, encoded.lengths, fates, data)
        self._usable = np.flatnonzero(fates <= packing.CUT)
        require(
            len(self._usable) > 0,
            f"data.streams.{name}: no record fits into data.length={data.length} tokens and "
            f"data.image_slots={data.image_slots} images",
        )
        self._encoded, self._codes = encoded, codes
        self._ids = [record.id for record in records]
        self._paths = [record.images for record in records]
        self.sizes = np.minimum(encoded.lengths.size, data.length)[self._usable]
        self.images = encoded.lengths.images[self._usable]
        self.dropped = _by_language(codes[fates >= packing.LONG], data.languages)
        self.cut = _by_language(codes[fates == packing.CUT], data.languages)
        self.trained = self._count_trained(fates)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Example:
        """The example of a usable record, its images widened to seats, cut to the row's length."""
        record = int(self._usable[index])
        tokens, weights = self._encoded[record]
        wide = expand(tokens, weights, self._image, self._patches)
        wide = Encoded(*(field[: self._length] for field in wide))
        name = f"{self.name}/{self._ids[record]}"
        return Example(*wide, self._paths[record], self.number, int(self._codes[record]), name)

    def _count_trained(self, fates: Any) -> int:
        whole = int(self._encoded.trained[fates == packing.FITS].sum())
        cut = np.flatnonzero(fates[self._usable] == packing.CUT)
        return whole + sum(int(self[int(i)].weights.sum()) for i in cut)

    def _refuse(
        self, records: Sequence[Record], lengths: packing.Lengths, fates: Any, data: DataConfig
    ) -> None:
        """Raises ConfigError for records that do not fit, if the policy says so."""
        bad = np.flatnonzero(fates >= packing.LONG) if data.over_long == "fail" else []
        if len(bad) == 0:
            return
        reasons = []
        for i in bad[:NAMED]:
            if fates[i] == packing.IMAGES:
                reason = f"{lengths.images[i]} images, but data.image_slots={data.image_slots}"
            else:
                reason = f"{lengths.size[i]} tokens, but data.length={data.length}"
            reasons.append(f"record {records[i].id!r} has {reason}")
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise ConfigError(
            f"data.streams.{self.name}: {len(bad)} of {len(records)} records do not fit a row: "
            f"{'; '.join(reasons)}{more}; raise the limit, or set data.over_long to drop or cut"
        )


class _Store:
    """Encoded conversations end to end in two arrays, and their lengths."""

    def __init__(self, encoded: Iterator[Encoded], image_token: int | None, patches: int):
        tokens, weights, rows = [], [], []
        for item in encoded:
            tokens.append(item.tokens)
            weights.append(item.weights.astype(np.int8))
            rows.append(_measure(item, patches))
        self._tokens, self._weights = np.concatenate(tokens), np.concatenate(weights)
        self._ends = np.cumsum([len(part) for part in tokens])
        self.trained = np.array([part.sum(dtype=np.int64) for part in weights])  # tokens, by record
        self.lengths = packing.Lengths(*np.array(rows, np.int64).T)

    def __getitem__(self, record: int) -> tuple[Any, Any]:
        start = 0 if record == 0 else self._ends[record - 1]
        span = slice(start, self._ends[record])
        return self._tokens[span], self._weights[span].astype(np.float32)


def _measure(item: Encoded, patches: int) -> tuple[int, int, int, int]:
    """(size, images, first_trained, last_seat) once every image token is `patches` tokens wide."""
    is_image = item.seats >= 0
    images = int(is_image.sum())
    ends = np.cumsum(np.where(is_image, patches, 1))  # token t of `item` ends before place ends[t]
    size = int(ends[-1])
    trained = np.flatnonzero(item.weights[1:] > 0) + 1
    first = int(ends[trained[0]]) - 1 if len(trained) else size
    last = int(ends[np.flatnonzero(is_image)[-1]]) - 1 if images else -1
    return size, images, first, last


def _encoded(name: str, records: Sequence[Record], chat: Chat) -> Iterator[Encoded]:
    options: dict[str, Any] = {"delay": 2, "leave": False, "disable": None}  # only on a terminal
    with tqdm(total=len(records), desc=f"tokenising {name}", unit="record", **options) as bar:
        for start in range(0, len(records), CHUNK):
            part = records[start : start + CHUNK]
            names = [f"data.streams.{name}: record {record.id!r}" for record in part]
            yield from chat.encode_batch([record.turns for record in part], names)
            bar.update(len(part))


def _by_language(codes: Any, languages: tuple[str, ...]) -> dict[str, int]:
    counts = collections.Counter(codes.tolist())
    return {languages[code]: counts[code] for code in sorted(counts)}


class StreamReport(NamedTuple):
    """What a stream gives to a run; counts of over-long records are by language."""

    records: int  # in the file
    used: int  # that fit, whole or cut
    dropped: dict[str, int]
    cut: dict[str, int]
    images: int
    tokens: int  # image seats included
    trained_tokens: int
    trained_share: float


def report(stream: StreamIndex) -> StreamReport:
    """Counts over one pass through a stream's usable records."""
    tokens = int(stream.sizes.sum())
    return StreamReport(
        records=stream.total,
        used=len(stream),
        dropped=stream.dropped,
        cut=stream.cut,
        images=int(stream.images.sum()),
        tokens=tokens,
        trained_tokens=stream.trained,
        trained_share=stream.trained / tokens,
    )
