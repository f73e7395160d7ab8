"""Read held-out records as batches, the same rows every time: the first of every language.

    streams -> first `records` of every language -> packed in file order -> batches 0 ... count - 1

Nothing is shuffled or repeated. Rows behind the last one are empty.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.batches import Batches
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.stream import StreamIndex
from mllm_jax.data.loader import check
from mllm_jax.data.mixture import packing
from mllm_jax.data.mixture.order import Ref


class HeldOut(Batches):
    """Batches of held-out records, from number 0 to `count` - 1."""

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Any,
        records: int,
        share: Sequence[int] | None = None,
        workers: int | None = None,
        decode: bool = False,
    ):
        """Opens the streams' indexes; those that are missing are built.

        Args:
            config: as `heldout_data` makes it.
            model: image token, and how images are laid out.
            tokenizer: as `load_tokenizer` gives it.
            records: most records of a language in a stream.
            share: numbers of a batch's rows that this process loads, when several processes do; all
                rows when None.
            workers: processes that read records where an index is missing; all cores when None.
            decode: every image is decoded to its end, as `prepare` does.

        Raises:
            ConfigError: config, tokenizer and model do not fit each other, or records are refused.
        """
        check(config, model, tokenizer)
        workers = workers or os.cpu_count() or 1
        mixture = Mixture(config, model, tokenizer, workers, decode, build=share is None)
        super().__init__(open_streams(mixture), config, model, share)
        self.refs = [ref for stream in self._streams for ref in first_records(stream, records)]
        self._rows = self._packed()

    @property
    def count(self) -> int:
        """Batches."""
        return -(-len(self._rows) // self._config.rows)

    def rows(self, step: int) -> list[list[Ref]]:
        """The examples in all rows of a batch, the same in every process."""
        first = step * self._config.rows
        rows = self._rows[first : first + self._config.rows]
        return rows + [[]] * (self._config.rows - len(rows))

    def _packed(self) -> list[list[Ref]]:
        if not self._config.pack:
            return [[ref] for ref in self.refs]
        sizes = [int(self._streams[ref.stream].sizes[ref.record]) for ref in self.refs]
        tiles = [int(self._streams[ref.stream].tiles[ref.record]) for ref in self.refs]
        shape = self._config.length, self._config.image_slots
        rows = packing.best_fit(sizes, tiles, *shape, packing.Limit(self._config.row_examples))
        return [[self.refs[i] for i in row] for row in rows]


def heldout_data(
    data: DataConfig, streams: Mapping[str, StreamConfig], microbatches: int
) -> DataConfig:
    """A stage's data section with held-out streams, and the rows of a microbatch in a batch.

    A forward pass of so many rows takes no more memory than a step does.
    """
    plain = {
        name: dataclasses.replace(stream, weight=1.0, epochs=None)
        for name, stream in streams.items()
    }
    return dataclasses.replace(
        data,
        streams=plain,
        rows=data.rows // microbatches,
        weights="records",
        changes={},
        temperature=1.0,
        workers=0,
    )


def images_beside(data: Path) -> Path:
    """Where image paths of a file start by default: `images` beside it, else its own folder."""
    beside = data.parent / "images"
    return beside if beside.is_dir() else data.parent


def first_records(stream: StreamIndex, count: int) -> list[Ref]:
    """The first `count` examples of every language of a stream, in the stream's order."""
    languages = stream.language_numbers
    chosen = [np.flatnonzero(languages == number)[:count] for number in np.unique(languages)]
    numbers = np.sort(np.concatenate(chosen)).tolist()
    return [Ref(number, stream.number, number, 0) for number in numbers]
