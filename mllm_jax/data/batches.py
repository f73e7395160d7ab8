"""Turns planned rows into batches: reads examples and images, in threads ahead of the device."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from mllm_jax.batch import TEXT, Batch, Contents, Example
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import DataConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.images import decode
from mllm_jax.data.images.tiles import Tiles, of_record
from mllm_jax.data.index.stream import StreamIndex
from mllm_jax.data.mixture import packing
from mllm_jax.data.mixture.order import Ref
from mllm_jax.data.mixture.pairs import locate, most_pairs
from mllm_jax.data.workers import WorkerMessages, Workers

_MESSAGES = WorkerMessages(
    "data-worker", "made batch {}".format, "lower data.workers", "continue with --resume"
)


class HostBatch(NamedTuple):
    """A batch of numpy arrays and where it comes from."""

    batch: Batch
    records: list[str]  # "stream/id" of every example of this process, row by row
    contents: Contents  # of all processes' rows


class Batches:
    """Batches by number; which examples are in their rows is told by `rows`."""

    def __init__(
        self,
        streams: Sequence[StreamIndex],
        config: DataConfig,
        model: ModelConfig,
        share: Sequence[int] | None = None,
        pairs: bool = False,
    ):
        """Takes opened streams.

        Args:
            streams: from `open_streams`.
            config: shape of a batch, threads, limits on images.
            model: image token, and how images are laid out.
            share: numbers of a batch's rows that this process loads, when several processes do; all
                rows when None.
            pairs: batches say where the two records of each pair are.
        """
        self._streams, self._config, self._model = list(streams), config, model
        self._most_pairs = None
        if pairs:
            pairings = [stream.pairing for stream in streams if stream.pairing is not None]
            sizes = np.concatenate([of.sizes[of.is_pair] for of in pairings])
            tiles = np.concatenate([of.tiles[of.is_pair] for of in pairings])
            shape = config.length, config.image_slots, config.pack
            self._most_pairs = most_pairs(sizes, tiles, *shape)
        self._patches = model.patches
        self._size = model.vision.image_size if model.vision is not None and self._patches else 1
        self._share = range(config.rows) if share is None else share
        self._images = _Images(config, model)

    @property
    def streams(self) -> list[StreamIndex]:
        """The usable records of every stream, in the order of their numbers."""
        return self._streams

    @property
    def config(self) -> DataConfig:
        """Streams, and the shape of a batch."""
        return self._config

    def tiles(self, images: Sequence[str | bytes]) -> list[Tiles]:
        """The images of a record as the vision tower reads them.

        Raises:
            ConfigError: one that cannot be decoded.
        """
        return [self._images.tiles(image, len(images)) for image in images]

    def rows(self, step: int) -> list[list[Ref]]:
        """The examples in all rows of a batch, the same in every process."""
        raise NotImplementedError

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
        images = [tiles for example in examples for tiles in self._of(example)]
        data = self._config
        row = packing.assemble(
            examples, images, data.length, data.image_slots, self._patches, self._size
        )
        if self._most_pairs is not None:
            partners, spans = locate(examples, data.length, self._most_pairs)
            row = row._replace(partners=partners, spans=spans)
        tokens, placeholders = row.tokens == self._model.image_token, row.image_index != TEXT
        if self._patches and not np.array_equal(placeholders, tokens):
            raise ValueError(f"image tokens and placeholders differ in the row of {records[:5]}")
        return row, records

    def _of(self, example: Example) -> list[Tiles]:
        """The images of an example. Raises ConfigError where one is not what the index knows."""
        images = self.tiles(example.images)
        placeholders = example.placeholders[example.placeholders != TEXT]
        pairs, start = [(len(one.pixels), one.placeholders) for one in images], 0
        for path, numbers in zip(example.images, of_record(pairs, self._patches), strict=True):
            end = start + len(numbers)
            if not np.array_equal(placeholders[start:end], numbers):
                name = path if isinstance(path, str) else f"image of {len(path)} bytes"
                raise ConfigError(
                    f"{example.record}: {name}: the image has another size than when the stream "
                    "was read; remove the stream's index and run `mllm-jax prepare --config FILE`"
                )
            start = end
        return images

    def _contents(self, planned: list[list[Ref]]) -> Contents:
        refs = [(self._streams[ref.stream], ref.record) for row in planned for ref in row]
        return Contents(
            [stream.key(record) for stream, record in refs],
            np.array([stream.number for stream, _ in refs], np.int64),
            np.array([stream.language(record) for stream, record in refs], np.int64),
            np.array([stream.sizes[record] for stream, record in refs], np.int64),
            np.array([stream.images[record] for stream, record in refs], np.int64),
            np.array([stream.tiles[record] for stream, record in refs], np.int64),
            self._config.rows * self._config.length,
            self._config.rows * self._config.image_slots,
        )

    def iterate(self, start: int, stop: int) -> Iterator[HostBatch]:
        """Batches of numbers start, start + 1, ..., stop - 1 in order, made ahead.

        Raises:
            ConfigError: an image that cannot be decoded, when its step comes.
            RunError: a worker process was killed.
        """
        if start >= stop:
            return iter(())
        if self._config.workers:
            pool = Workers(self.batch, self._config.workers, _MESSAGES)
            return pool.iterate(range(start, stop), self._config.prefetch)
        ahead = self._config.prefetch
        options = grain.ReadOptions(
            num_threads=min(self._config.threads, ahead) if ahead else 0, prefetch_buffer_size=ahead
        )
        steps = grain.MapDataset.range(start, stop).map(self.batch)
        return iter(steps.to_iter_dataset(options))


class _Images:
    """Reads images; keeps the first `data.image_cache` MiB of those read by path.

    Shared by the threads of a loader.
    """

    def __init__(self, config: DataConfig, model: ModelConfig):
        self._config, self._model = config, model
        self._kept: dict[tuple[str, int], Tiles] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Every worker process keeps images of its own."""
        return _Images, (self._config, self._model)

    def tiles(self, image: str | bytes, images: int) -> Tiles:
        """An image of a record of so many, as the vision tower reads it."""
        images = min(images, 2) if self._model.grids is not None else 1  # all that a layout asks
        if isinstance(image, bytes):
            return self._load(image, images)
        key = image, images
        if key in self._kept:
            return self._kept[key]
        tiles = self._load(image, images)
        with self._lock:
            size = tiles.pixels.nbytes
            if key not in self._kept and self._bytes + size <= self._config.image_cache * 2**20:
                self._kept[key] = tiles
                self._bytes += size
        return tiles

    def _load(self, image: str | bytes, images: int) -> Tiles:
        config = self._config
        return decode.load_tiles(image, self._model, config.image_fit, images, config.max_pixels)
