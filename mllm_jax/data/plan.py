"""Which examples stand in which row of which step: a pure function of (streams, config, seed).

The mixture's order is packed in windows (`rows`). How many rows each window makes is kept in a
small table on disk, one number a window, so the seek to any step that was ever counted costs one
look-up.

Where `data.changes` gives other weights from a step on, a new phase begins there. It first uses up
the examples that the last window of the phase before had placed in later rows, then goes on in
every stream where that phase stopped: nothing is left out or comes twice.
"""

import json
import math
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mllm_jax.data.mixture import Measured, passes, record_weights
from mllm_jax.data.order import Order, Ref
from mllm_jax.data.packing import WAYS, Window, best_fit
from mllm_jax.data.progress import bar
from mllm_jax.data.rows import Rows
from mllm_jax.data_config import DataConfig
from mllm_jax.errors import require
from mllm_jax.folders import whole_file


class Plan:
    """Row number -> examples."""

    def __init__(self, streams: Sequence[Measured], data: DataConfig, seed: int):
        """Loads the tables of an earlier plan over the same lengths, if there are any."""
        self._streams, self._data = streams, data
        lengths = Lengths(
            np.cumsum([0, *(len(stream) for stream in streams)])[:-1],
            np.concatenate([stream.sizes for stream in streams]),
            np.concatenate([stream.images for stream in streams]),
        )
        names, sizes = list(data.streams), [len(stream) for stream in streams]
        order = Order(names, sizes, record_weights(streams, data), seed)
        self._phases = [Phase(0, order, [], lengths, data)]
        for step, changed in data.weight_changes():
            before = self._phases[-1]
            row = step * data.rows - before.first_row
            weights = record_weights(streams, changed)
            order = Order(names, sizes, weights, seed, before.used(row))
            self._phases.append(
                Phase(step * data.rows, order, before.left_over(row), lengths, data)
            )

    def row(self, number: int) -> list[Ref]:
        """The examples in a row."""
        phase = self._phase(number)
        return phase.row(number - phase.first_row)

    def weights(self, step: int) -> list[float]:
        """Each stream's share of the positions at a step."""
        return self._phase(step * self._data.rows).weights

    def steps(self, epochs: int | float) -> int:
        """Steps until the mixture has been gone through `epochs` times, see `mixture.passes`.

        Raises:
            ConfigError: the weights change on the way.
        """
        require(
            len(self._phases) == 1,
            f"train.epochs={epochs}: with data.changes the end of an epoch is not defined; give "
            "train.steps",
        )
        rows = self._phases[0].rows.before(math.ceil(epochs * passes(self._streams, self._data)))
        return max(1, -(-rows // self._data.rows))

    def fill(self, windows: int) -> dict[str, tuple[float, float]]:
        """How full rows are, as planned and beside it by simpler ways, over the first windows.

        Returns:
            Way -> (share of tokens that are useful, share of image slots in use).
        """
        return self._phases[0].fill(windows)

    def count(self, steps: int) -> None:
        """Counts the rows of all windows of the first steps and keeps the tables on disk."""
        ends = [phase.first_row for phase in self._phases[1:]]
        for phase, end in zip(self._phases, [*ends, steps * self._data.rows], strict=True):
            phase.count(min(end, steps * self._data.rows) - phase.first_row)

    def _phase(self, row: int) -> "Phase":
        return next(phase for phase in reversed(self._phases) if phase.first_row <= row)


class Lengths(NamedTuple):
    """Of all streams' examples end to end, so that many are looked up at once."""

    first: Int64[np.ndarray, "s"]  # of each stream
    sizes: Int64[np.ndarray, "n"]
    images: Int64[np.ndarray, "n"]


class Phase:
    """The rows from one change of the weights to the next; they are numbered from its first."""

    def __init__(
        self, first_row: int, order: Order, head: list[Ref], lengths: Lengths, data: DataConfig
    ):
        """`head` are the examples that come before those of `order`."""
        self.first_row, self._order, self._head = first_row, order, head
        self.weights = order.weights
        self._lengths, self._data = lengths, data
        self._where = self._places(
            np.array([ref.stream for ref in head], np.int64),
            np.array([ref.record for ref in head], np.int64),
        )
        self._table = self._table_file()
        known = np.load(self._table, allow_pickle=False) if self._table.is_file() else [0]
        self.rows = Rows(self._pack, data.window, [int(n) for n in known])

    def row(self, number: int) -> list[Ref]:
        """The examples in a row."""
        return [self._ref(position) for position in self.rows[number]]

    def used(self, rows: int) -> Int64[np.ndarray, "s"]:
        """Examples of each stream up to the end of the window that the first `rows` end in."""
        end = self._window_end(rows)
        return self._order.before(max(0, end - len(self._head)))

    def left_over(self, rows: int) -> list[Ref]:
        """The examples of that window that stand in later rows."""
        end = self._window_end(rows)
        start = max(0, end - self._data.window)
        taken = {p for n in range(self.rows.before(start), rows) for p in self.rows[n]}
        later = [self._ref(p) for p in range(start, end) if p not in taken]
        return later + self._head[end:]

    def count(self, rows: int) -> None:
        """See `Plan.count`."""
        with bar(total=rows, desc="planning rows", unit="row") as shown:
            while (known := self.rows.starts[-1]) < rows:
                shown.update(known - shown.n)
                self.rows[known]  # the first row that is not counted yet
        self._table.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._table) as beside, beside.open("wb") as file:
            np.save(file, np.array(self.rows.starts, np.int64), allow_pickle=False)

    def fill(self, windows: int) -> dict[str, tuple[float, float]]:
        """See `Plan.fill`."""
        data, lengths, found = self._data, self._lengths, {}
        positions = np.arange(windows * data.window)
        refs = self._order.take(positions)
        where = self._places(refs.stream, refs.record)
        sizes, images = lengths.sizes[where], lengths.images[where]
        for way, pack in WAYS.items():
            rows = 0
            for start in range(0, len(positions), data.window):
                part = slice(start, start + data.window)
                rows += len(pack(sizes[part], images[part], data.length, data.image_slots))
            slots = max(1, data.image_slots)
            found[way] = (
                float(sizes.sum() / (rows * data.length)),
                float(images.sum() / (rows * slots)),
            )
        return found

    def _window_end(self, rows: int) -> int:
        """End of the window that the last of the first `rows` rows stands in."""
        if rows == 0:
            return 0
        return (self.rows[rows - 1][0] // self._data.window + 1) * self._data.window

    def _ref(self, position: int) -> Ref:
        if position < len(self._head):
            return self._head[position]
        return self._order[position - len(self._head)]

    def _pack(self, positions: range) -> Window:
        if not self._data.pack:
            return [[i] for i in range(len(positions))]
        head, wanted = len(self._head), np.asarray(positions)
        refs = self._order.take(wanted[wanted >= head] - head)
        where = np.concatenate(
            [self._where[wanted[wanted < head]], self._places(refs.stream, refs.record)]
        )
        data, lengths = self._data, self._lengths
        return best_fit(lengths.sizes[where], lengths.images[where], data.length, data.image_slots)

    def _places(
        self, stream: Int64[np.ndarray, "n"], record: Int64[np.ndarray, "n"]
    ) -> Int64[np.ndarray, "n"]:
        """Where the examples stand among all lengths."""
        return self._lengths.first[stream] + record

    def _table_file(self) -> Path:
        data, first = self._data, next(iter(self._data.streams.values()))
        said = [data.length, data.image_slots, data.window, data.pack, self._order.made_of]
        digest = blake2b(json.dumps([*said, self._head]).encode(), digest_size=8)
        digest.update(self._lengths.sizes.tobytes() + self._lengths.images.tobytes())
        home = Path(data.index or first.index_home)
        return home / "plans" / f"{digest.hexdigest()}.npy"
