"""Lays out every image of a stream, from the sizes that its index keeps: no file is opened."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from mllm_jax.config.image_tokens import ImageLayout
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.images.tiles import Placeholders, of_record, placeholders
from mllm_jax.data.index.storage import Store
from mllm_jax.data.mixture.packing import Lengths


class ImageLayouts:
    """Tiles and placeholders of a stream's images, as the model takes them."""

    def __init__(self, store: Store, model: ModelConfig):
        """Lays out each size once."""
        self._store, self._model = store, model
        sizes = store.image_sizes
        self._numbers = np.zeros(len(sizes), np.int64)  # of each image's layout
        if len(sizes) == 0:
            self._layouts = []
        elif model.grids is None:
            self._layouts = [model.image_layout((1, 1))]  # that of all sizes
        else:
            images = store.records["images"]
            several = np.repeat(images > 1, images)
            keys = (sizes[:, 0].astype(np.int64) << 32) + 2 * sizes[:, 1].astype(np.int64) + several
            unique, self._numbers = np.unique(keys, return_inverse=True)
            self._layouts = [
                model.image_layout((key >> 32, (key & 0xFFFFFFFF) >> 1), images=1 + (key & 1))
                for key in unique.tolist()
            ]
        counts = [(layout.tiles, layout.placeholders) for layout in self._layouts]
        each = np.array(counts, np.int64).reshape(-1, 2)[self._numbers]
        # tiles and placeholders before each image, and of all
        self._before = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(each, axis=0)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process lays out again; arrays of millions of images would be copied."""
        return ImageLayouts, (self._store, self._model)

    def lengths(self, records: Int64[np.ndarray, "n"]) -> Lengths:
        """Lengths of records, each image as wide as its placeholders, and counted in tiles."""
        table = self._store.records[records]
        images, end = table["images"].astype(np.int64), table["hashes"]
        start, early = end - images, table["before"].astype(np.int64)
        tiles, wide = (self._before[end] - self._before[start]).T
        _, wide_early = (self._before[start + early] - self._before[start]).T
        return Lengths(
            size=table["size"] + wide - images,
            tiles=tiles,
            first_trained=table["first"] + wide_early - early,
            last_placeholder=np.where(images > 0, table["last"] + wide - images, -1),
        )

    def of(self, record: int) -> list[ImageLayout]:
        """The layouts of a record's images."""
        return [self._layouts[n] for n in self._numbers[self._store.images(record)].tolist()]

    def placeholders(self, record: int) -> list[Placeholders]:
        """Those of each image of a record, numbered over all its tiles."""
        vision, layouts = self._model.vision, self.of(record)
        if vision is None or not layouts:
            return []
        return of_record(
            [(of.tiles, placeholders(of, vision)) for of in layouts], self._model.patches
        )
