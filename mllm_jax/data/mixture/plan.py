"""Plans which examples are in which row of which step: pure in (streams, config, seed).

The mixture's order is packed in windows (`rows`). A window ends where a pass of the mixture ends,
so that a pass is a whole number of rows; a run over `train.epochs` ends with the last of them, and
what remains of its last batch stays empty:

    positions   0 ... 2047 | 2048 ... 4999 | 5000 ...      a pass of 5,000, a window of 2,048
    rows        0 ... 210  | ...      511  | 512 ...       batches of 8: the run has 64 steps

How many rows each window makes is kept in a small table on disk, so the seek to any step that was
ever counted is a look-up.

If `data.changes` gives other weights from a step on, a new phase begins there. It first uses the
examples that the last window of the phase before had placed in later rows, then continues in every
stream where that phase stopped: nothing is left out or repeated.
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mllm_jax.common.errors import require
from mllm_jax.config.data import DataConfig
from mllm_jax.data.index.pairing import Pairing
from mllm_jax.data.mixture.order import Order, Ref
from mllm_jax.data.mixture.packing import WAYS, Limit, Window, best_fit, spread
from mllm_jax.data.mixture.passes import Passes
from mllm_jax.data.mixture.row_table import RowTable
from mllm_jax.data.mixture.weights import Measured, mixture_passes, record_weights, stream_passes
from mllm_jax.data.mixture.windows import Rows

MOST = 10**9  # examples or rows that are planned ahead: about an hour's work of one core


class End(NamedTuple):
    """Where `train.epochs` end a run."""

    examples: int
    steps: int
    empty_rows: int  # of the last batch


class Plan:
    """Row number -> examples."""

    def __init__(self, streams: Sequence[Measured], data: DataConfig, seed: int):
        """Loads the tables of an earlier plan over the same lengths, if there are any."""
        self._streams, self._data = streams, data
        lengths = Lengths(
            np.cumsum([0, *(len(stream) for stream in streams)])[:-1],
            np.concatenate([stream.sizes for stream in streams]),
            np.concatenate([stream.tiles for stream in streams]),
            np.concatenate([_examples(stream) for stream in streams]),
        )
        self._lengths, self._seed = lengths, seed
        self._passes = mixture_passes(streams, data)
        self._end: tuple[int, Window] | None = None
        self._changes = [
            Change(step * data.rows, stream_passes(streams, of), record_weights(streams, of))
            for step, of in [(0, data), *data.weight_changes()]
        ]
        self._phases = [self._begin(self._changes[0])]

    def row(self, number: int) -> list[Ref]:
        """The examples in a row; none behind the end that `end_after` has set."""
        phase = self._phase(number)
        if self._end is not None and number >= self._end[0]:
            first, last_rows = self._end
            positions = last_rows[number - first] if number - first < len(last_rows) else []
            return phase.refs(positions)
        return phase.row(number - phase.first_row)

    def weights(self, step: int) -> list[float]:
        """Each stream's share of the records at a step."""
        row = step * self._data.rows
        return next(of.weights for of in reversed(self._changes) if of.first_row <= row)

    def shares(self, steps: int) -> list[float]:
        """Each stream's share of the records over the first steps, as the config asks for."""
        last = steps * self._data.rows
        rows = np.diff([min(of.first_row, last) for of in self._changes], append=last)
        return (rows @ np.array([of.weights for of in self._changes]) / last).tolist()

    def end_after(self, epochs: int | float) -> End:
        """Ends the plan when the mixture has been gone through `epochs` times.

        See `mixture.mixture_passes`. Rows behind the end are empty. An end inside a pass also ends
        a window.

        Raises:
            ConfigError: the weights change on the way, or the way is too long to be planned.
        """
        require(
            len(self._changes) == 1,
            f"train.epochs={epochs}: with data.changes the end of an epoch is not defined; give "
            "train.steps",
        )
        examples = self._passes.start(Fraction(str(epochs)))
        require(
            examples <= MOST,
            f"train.epochs={epochs}: {examples:.3g} examples; at most {MOST:,} are planned, give "
            "train.steps instead",
        )
        first, last_rows = self._phases[0].until(examples)
        self._end = first, last_rows
        steps = -(-(first + len(last_rows)) // self._data.rows)
        return End(examples, steps, steps * self._data.rows - first - len(last_rows))

    def fill(self, windows: int) -> dict[str, tuple[float, float]]:
        """How full rows are, as planned and beside it by simpler ways, over the first windows.

        Returns:
            Way -> (share of tokens that are useful, share of image slots in use).
        """
        return self._phases[0].fill(windows)

    def count(self, steps: int) -> None:
        """Counts the rows of all windows of the first steps and keeps the tables on disk.

        Raises:
            ConfigError: the way is too long to be planned.
        """
        rows = steps * self._data.rows
        require(
            rows <= MOST,
            f"train.steps={steps}: {rows:,} rows; at most {MOST:,} are planned ahead",
        )
        self._phase(rows - 1)
        ends = [phase.first_row for phase in self._phases[1:]]
        for phase, end in zip(self._phases, [*ends, rows], strict=True):
            if phase.first_row < rows:
                phase.rows.count(min(end, rows) - phase.first_row)

    def _phase(self, row: int) -> "Phase":
        """Begins phases when their first row is asked for: that packs the one before to its end."""
        phases = self._phases  # two threads may begin the same one; both are alike
        for change in self._changes[len(phases) :]:
            if change.first_row <= row:
                phases = [*phases, self._begin(change, phases[-1])]
        self._phases = phases
        return next(phase for phase in reversed(phases) if phase.first_row <= row)

    def _begin(self, change: "Change", before: "Phase | None" = None) -> "Phase":
        streams, start, head = self._data.streams, (), []
        if before is not None:
            row = change.first_row - before.first_row
            start, head = before.used(row), before.left_over(row)
        sizes = [len(stream) for stream in self._streams]
        order = Order(list(streams), sizes, change.passes, self._seed, start)
        return Phase(change.first_row, order, head, self._lengths, self._data, self._passes)


class Change(NamedTuple):
    """The passes and weights of the streams from a row on."""

    first_row: int
    passes: Passes
    weights: list[float]


class Lengths(NamedTuple):
    """Of all streams' examples end to end, so that many are looked up at once."""

    first: Int64[np.ndarray, "s"]  # of each stream
    sizes: Int64[np.ndarray, "n"]
    tiles: Int64[np.ndarray, "n"]
    examples: Int64[np.ndarray, "n"]  # 2 where a unit is a pair


def _examples(stream: Measured) -> Int64[np.ndarray, "n"]:
    """Examples of every unit of a stream."""
    if isinstance(stream, Pairing):
        return 1 + stream.is_pair.astype(np.int64)
    return np.ones(len(stream), np.int64)


class Phase:
    """The rows from one change of the weights to the next; they are numbered from its first."""

    def __init__(
        self,
        first_row: int,
        order: Order,
        head: list[Ref],
        lengths: Lengths,
        data: DataConfig,
        passes: Passes,
    ):
        """`head` are the examples that come before those of `order`."""
        self.first_row, self._order, self._head, self._passes = first_row, order, head, passes
        self._lengths, self._data = lengths, data
        self._head_streams = np.array([ref.stream for ref in head], np.int64)
        self._head_records = np.array([ref.record for ref in head], np.int64)
        self.rows = Rows(self._pack, self._cut, data.window, RowTable(self._table_file()))

    def row(self, number: int) -> list[Ref]:
        """The examples in a row."""
        return self.refs(self.rows[number])

    def refs(self, positions: Sequence[int]) -> list[Ref]:
        """The examples at these positions."""
        head = len(self._head)
        later = np.array([p - head for p in positions if p >= head], np.int64)
        fields = (later, *self._order.take(later))
        refs = map(Ref, *(field.tolist() for field in fields))
        return [self._head[p] if p < head else next(refs) for p in positions]

    def used(self, rows: int) -> Int64[np.ndarray, "s"]:
        """Examples of each stream up to the end of the window that the first `rows` end in."""
        return self._order.before(self.rows.window(rows - 1).end - len(self._head))

    def left_over(self, rows: int) -> list[Ref]:
        """The examples of that window that are in later rows."""
        window = self.rows.window(rows - 1)
        later = window.rows[rows - window.first_row :]
        return self.refs(sorted(window.start + i for row in later for i in row))

    def until(self, position: int) -> tuple[int, Window]:
        """Rows before the window that `position` cuts, and the rows of its part before it."""
        rows, start = self.rows.whole_windows(position)
        if start == position:
            return rows, []
        part = self._pack(range(start, position))
        return rows, [[start + i for i in row] for row in part]

    def fill(self, windows: int) -> dict[str, tuple[float, float]]:
        """See `Plan.fill`."""
        data, lengths, shares = self._data, self._lengths, {}
        ends = [0]
        for _ in range(windows):
            ends.append(self._cut(ends[-1]))
        _, index = self._examples(range(ends[-1]))
        sizes, tiles = lengths.sizes[index], lengths.tiles[index]
        shape = data.length, data.image_slots
        for way, pack in WAYS.items():
            rows = 0
            for part in map(slice, ends, ends[1:]):
                limit = Limit(data.row_examples, lengths.examples[index[part]])
                rows += len(pack(sizes[part], tiles[part], *shape, limit))
            slots = max(1, data.image_slots)
            shares[way] = (
                float(sizes.sum() / (rows * data.length)),
                float(tiles.sum() / (rows * slots)),
            )
        return shares

    def _cut(self, start: int) -> int:
        """The end of the window that begins at a position."""
        return min(start + self._data.window, self._passes.end(start))

    def _pack(self, positions: range) -> Window:
        data, lengths = self._data, self._lengths
        if not data.pack:
            return [[i] for i in range(len(positions))]
        streams, index = self._examples(positions)
        sizes, tiles = lengths.sizes[index], lengths.tiles[index]
        limit = Limit(data.row_examples, lengths.examples[index])
        rows = best_fit(sizes, tiles, data.length, data.image_slots, limit)
        return spread(rows, streams, [self._order.seed, self.first_row, positions.start])

    def _examples(self, positions: range) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """The stream at each position, and the index of its example among all lengths."""
        head, at = len(self._head), np.asarray(positions)
        refs, first = self._order.take(at[at >= head] - head), at[at < head]
        stream = np.concatenate([self._head_streams[first], refs.stream])
        record = np.concatenate([self._head_records[first], refs.record])
        return stream, self._lengths.first[stream] + record

    def _table_file(self) -> Path:
        data, first = self._data, next(iter(self._data.streams.values()))
        shape = [data.length, data.image_slots, data.window, data.pack, self.first_row]
        shape += [] if data.row_examples is None else [data.row_examples]
        passes = list(map(str, self._passes.rates))
        identity = [*shape, passes, self._order.identity, self._head]
        digest = blake2b(json.dumps(identity).encode(), digest_size=8)
        digest.update(self._lengths.sizes.tobytes() + self._lengths.tiles.tobytes())
        home = Path(data.index or first.index_home)
        return home / "plans" / f"{digest.hexdigest()}.rows"
