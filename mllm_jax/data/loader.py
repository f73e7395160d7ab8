"""Loads the mixture as batches by step number: any step at any time.

Which examples are in which row of which step depends on (config, seed, step) alone. A process takes
its slice of the rows, so resuming is a number, and another number of processes sees the same
batches.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.config.data import DataConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.batches import Batches, HostBatch
from mllm_jax.data.index import stream as index
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.mixture import order, packing
from mllm_jax.data.mixture.order import Ref
from mllm_jax.data.mixture.plan import Plan

MOST_PIXELS = 2**34  # of a step, in all processes: 48 GiB


class Loader(Batches):
    """The mixture as batches by step number."""

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Any,
        seed: int,
        share: Sequence[int] | None = None,
        pairs: bool = False,
    ):
        """Opens the streams' indexes; those that are missing are built.

        Args:
            config: streams, lengths, policies.
            model: image token, and how images are laid out.
            tokenizer: as `load_tokenizer` gives it.
            seed: of the order.
            share: numbers of a step's rows that this process loads, when several processes do; all
                rows when None.
            pairs: batches say where the two records of each pair are; streams name them.

        Raises:
            ConfigError: config, tokenizer and model do not fit each other, or records are refused.
        """
        check(config, model, tokenizer)
        # several processes would write the same index: they need it prepared
        workers = os.cpu_count() or 1
        mixture = Mixture(config, model, tokenizer, workers=workers, build=share is None)
        super().__init__(open_streams(mixture), config, model, share, pairs)
        units = [stream.units for stream in self._streams]
        self._plan, self._end = Plan(units, config, seed), None

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
        return self._of_records(self._plan.weights(step))

    def shares(self, steps: int) -> dict[str, float]:
        """Each stream's share of the records of the first steps, as the config asks for."""
        return self._of_records(self._plan.shares(steps))

    def count(self, steps: int) -> None:
        """Counts the rows of the first steps and keeps the counts on disk, see `Plan`."""
        self._plan.count(steps)

    def rows(self, step: int) -> list[list[Ref]]:
        """The examples in all rows of a step, the same in every process."""
        first = step * self._config.rows
        return [self._row(first + i) for i in range(self._config.rows)]

    def row(self, number: int) -> packing.Row:
        """One row of the order, numbered over all steps: row k of step s is s * data.rows + k.

        Raises:
            ConfigError: an image that cannot be decoded.
        """
        return self._assemble(self._row(number))[0]

    def _row(self, number: int) -> list[Ref]:
        """The examples in a row: what is planned are units, the two of a pair are neighbours."""
        return [
            ref._replace(record=record)
            for ref in self._plan.row(number)
            for record in self._streams[ref.stream].examples(ref.record)
        ]

    def _of_records(self, shares: list[float]) -> dict[str, float]:
        """Each stream's share of the units -> of the records."""
        if any(stream.pairing is not None for stream in self._streams):
            pairs = zip(shares, self._streams, strict=True)
            records = [share * len(stream) / len(stream.units) for share, stream in pairs]
            shares = [number / sum(records) for number in records]
        return dict(zip(self._config.streams, shares, strict=True))

    def iterate(self, start: int, stop: int) -> Iterator[HostBatch]:
        """As in `Batches`."""
        if start < stop and self._config.workers:
            self._plan.row(start * self._config.rows)  # counted once, not in every worker
        return super().iterate(start, stop)

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


def check(config: DataConfig, model: ModelConfig, tokenizer: Any) -> None:
    """Refuses a config that does not fit tokenizer or model. Raises ConfigError."""
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
