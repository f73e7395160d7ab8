"""Loads the batch of any step, in threads or processes ahead of the device.

Which examples are in which row of which step depends on (config, seed, step) alone. A process takes
its slice of the rows, so resuming is a number, and another number of processes sees the same
batches.
"""

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import UInt8

from mllm_jax.batch import Batch, Contents
from mllm_jax.common.errors import require
from mllm_jax.config.data import DataConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.images import decode
from mllm_jax.data.index import stream as index
from mllm_jax.data.index.cache import Mixture, open_mixture
from mllm_jax.data.mixture import order, packing
from mllm_jax.data.mixture.order import Ref
from mllm_jax.data.mixture.plan import Plan
from mllm_jax.data.workers import WorkerMessages, Workers

MOST_PIXELS = 2**34  # of a step, in all processes: 48 GiB


class HostBatch(NamedTuple):
    """A batch of numpy arrays and where it comes from."""

    batch: Batch
    records: list[str]  # "stream/id" of every example of this process, row by row
    contents: Contents  # of all processes' rows


class Loader:
    """The mixture as batches by step number."""

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Any,
        seed: int,
        share: Sequence[int] | None = None,
    ):
        """Opens the streams' indexes; those that are missing are built.

        Args:
            config: streams, lengths, policies.
            model: image token, image size and patches.
            tokenizer: as `load_tokenizer` gives it.
            seed: of the order.
            share: numbers of a step's rows that this process loads, when several processes do; all
                rows when None.

        Raises:
            ConfigError: config, tokenizer and model do not fit each other, or records are refused.
        """
        _check(config, model, tokenizer)
        self._config, self._model = config, model
        self._patches = model.patches
        self._size = model.vision.image_size if model.vision is not None and self._patches else 1
        self._share = range(config.rows) if share is None else share
        # several processes would write the same index: they need it prepared
        workers = os.cpu_count() or 1
        mixture = Mixture(config, model, tokenizer, workers=workers, build=share is None)
        self._streams = open_mixture(mixture)
        self._plan, self._end = Plan(self._streams, config, seed), None
        self._cache = _ImageCache(config, model)

    @property
    def streams(self) -> list[index.StreamIndex]:
        """The usable records of every stream, in the order of their numbers."""
        return self._streams

    @property
    def total_records(self) -> int:
        """Records that fit, over all streams: what an epoch counts."""
        return sum(len(stream) for stream in self._streams)

    def steps(self, epochs: int | float) -> int:
        """Ends the mixture after `epochs` passes and gives the steps until then, see `Plan`.

        Rows of the last batch behind that end are empty, and so are all later ones.
        """
        self._end = self._plan.end_after(epochs)
        return self._end.steps

    def weights(self, step: int) -> dict[str, float]:
        """Each stream's share of the records from this step on, as the config asks for."""
        return dict(zip(self._config.streams, self._plan.weights(step), strict=True))

    def shares(self, steps: int) -> dict[str, float]:
        """Each stream's share of the records of the first steps, as the config asks for."""
        return dict(zip(self._config.streams, self._plan.shares(steps), strict=True))

    def count(self, steps: int) -> None:
        """Counts the rows of the first steps and keeps the counts on disk, see `Plan`."""
        self._plan.count(steps)

    def rows(self, step: int) -> list[list[Ref]]:
        """The examples in all rows of a step, the same in every process."""
        first = step * self._config.rows
        return [self._plan.row(first + i) for i in range(self._config.rows)]

    def row(self, number: int) -> packing.Row:
        """One row of the order, numbered over all steps: row k of step s is s * data.rows + k.

        Raises:
            ConfigError: an image that cannot be decoded.
        """
        return self._assemble(self._plan.row(number))[0]

    def batch(self, step: int) -> HostBatch:
        """This process's rows of a step. Raises ConfigError for an image that cannot be decoded."""
        planned = self.rows(step)
        rows, records = zip(*(self._assemble(planned[k]) for k in self._share), strict=True)
        contents = self._contents(planned)
        return HostBatch(packing.stack(rows), list(itertools.chain(*records)), contents)

    def _assemble(self, refs: list[Ref]) -> tuple[packing.Row, list[str]]:
        """A row of these examples, and "stream/id" of each."""
        examples = [self._streams[ref.stream][ref.record] for ref in refs]
        records = [example.record for example in examples]
        pixels = [self._cache[image] for example in examples for image in example.images]
        data = self._config
        row = packing.assemble(
            examples, pixels, data.length, data.image_slots, self._patches, self._size
        )
        tokens, placeholders = row.tokens == self._model.image_token, row.image_index >= 0
        if self._patches and not np.array_equal(placeholders, tokens):
            raise ValueError(f"image tokens and placeholders differ in the row of {records[:5]}")
        return row, records

    def _contents(self, planned: list[list[Ref]]) -> Contents:
        refs = [(self._streams[ref.stream], ref.record) for row in planned for ref in row]
        return Contents(
            [stream.key(record) for stream, record in refs],
            np.array([stream.number for stream, _ in refs], np.int64),
            np.array([stream.language(record) for stream, record in refs], np.int64),
            np.array([stream.sizes[record] for stream, record in refs], np.int64),
            np.array([stream.images[record] for stream, record in refs], np.int64),
            self._config.rows * self._config.length,
        )

    def iterate(self, start: int, stop: int) -> Iterator[HostBatch]:
        """Batches of steps start, start + 1, ..., stop - 1 in order, made ahead.

        Raises:
            ConfigError: an image that cannot be decoded, when its step comes.
            RunError: a worker process was killed.
        """
        if start >= stop:
            return iter(())
        if self._config.workers:
            self._plan.row(start * self._config.rows)  # counted once, not in every worker
            pool = Workers(self.batch, self._config.workers, _MESSAGES)
            return pool.iterate(range(start, stop), self._config.prefetch)
        ahead = self._config.prefetch
        options = grain.ReadOptions(
            num_threads=min(self._config.threads, ahead) if ahead else 0, prefetch_buffer_size=ahead
        )
        steps = grain.MapDataset.range(start, stop).map(self.batch)
        return iter(steps.to_iter_dataset(options))

    def report(self) -> dict[str, Any]:
        """What the streams hold and what was left out: totals, and a `StreamReport` per stream.

        Also the version of the order, and where `train.epochs` end the run.
        """
        languages = self._config.languages
        streams = {s.name: index.report(s, languages)._asdict() for s in self._streams}
        tokens = sum(stream["tokens"] for stream in streams.values())
        trained = sum(stream["trained_tokens"] for stream in streams.values())
        return {
            "order": order.VERSION,
            "end": self._end and self._end._asdict(),
            "records": sum(stream["records"] for stream in streams.values()),
            "used": self.total_records,
            "tokens": tokens,
            "trained_tokens": trained,
            "trained_share": trained / tokens,
            "streams": streams,
        }


def _check(config: DataConfig, model: ModelConfig, tokenizer: Any) -> None:
    if model.language is not None:
        require(
            len(tokenizer) <= model.language.vocab,
            f"model.language.vocab={model.language.vocab} is too small for the tokenizer's "
            f"{len(tokenizer)} tokens",
        )
        require(
            config.length <= model.language.max_length,
            f"data.length={config.length} is longer than model.language.max_length="
            f"{model.language.max_length}",
        )
    require(
        model.patches > 0 or config.image_slots == 0,
        f"data.image_slots={config.image_slots}: the model reads no images, set 0",
    )
    if model.vision is not None:
        size = model.vision.image_size
        pixels = config.rows * config.image_slots * size**2
        require(
            pixels <= MOST_PIXELS,
            f"data.rows={config.rows} with data.image_slots={config.image_slots} images of "
            f"{size} x {size}: {pixels:.3g} pixels a step are more than {MOST_PIXELS:,}",
        )


_MESSAGES = WorkerMessages(
    "data-worker", "made batch {}".format, "lower data.workers", "continue with --resume"
)


class _ImageCache:
    """Image -> pixels; keeps the first `data.image_cache` MiB of those read by path.

    Shared by the threads of a loader.
    """

    def __init__(self, config: DataConfig, model: ModelConfig):
        self._config, self._model, vision = config, model, model.vision
        self._args = None
        if vision is not None:
            shape = (vision.image_size, config.image_fit, vision.image_mean)
            self._args = (*shape, config.max_pixels)
        self._pixels: dict[str, UInt8[np.ndarray, "height width C"]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Every worker process keeps images of its own."""
        return _ImageCache, (self._config, self._model)

    def __getitem__(self, path: str | bytes) -> UInt8[np.ndarray, "height width C"]:
        assert self._args is not None, "an image reached a model without a vision tower"
        if isinstance(path, bytes):
            return decode.load_pixels(path, *self._args)
        if path in self._pixels:
            return self._pixels[path]
        pixels = decode.load_pixels(path, *self._args)
        with self._lock:
            if (
                path not in self._pixels
                and self._bytes + pixels.nbytes <= self._config.image_cache * 2**20
            ):
                self._pixels[path] = pixels
                self._bytes += pixels.nbytes
        return pixels
