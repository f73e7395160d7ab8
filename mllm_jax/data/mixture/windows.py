"""Finds the positions in a row by its number, through windows that are packed on their own.

A row is found by packing one window, once it is known how many rows the windows before it make:

    positions        0 ... 2047 | 2048 ... 4095 | 4096 ... 4999 | 5000 ...   window = 2048
    rows before      0          | 211           | 419           | 511        a pass ends at 5000

Both numbers of each window are kept in a table on disk (`row_table`), so they are counted once.
"""

import bisect
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from mllm_jax.data.mixture.packing import Window
from mllm_jax.data.mixture.row_table import RowTable
from mllm_jax.data.progress import bar

# windows; if more must be counted it is done once for all processes, with a progress bar
NEAR = 16
LONG = 10**6  # rows or positions; counting so many takes more than some seconds
_CACHED = 2**18  # positions whose packed windows are kept in memory


class Packed(NamedTuple):
    """A window and its rows."""

    first_row: int
    start: int  # its positions
    end: int
    rows: Window


class Rows:
    """Row number -> positions of the mixture. Two numbers a window make any row cheap to find.

    Thread-safe: the threads of a loader share one.
    """

    def __init__(
        self,
        pack: Callable[[range], Window],
        cut: Callable[[int], int],
        window: int,
        table: RowTable | None = None,
    ):
        """Reads the table.

        Args:
            pack: gives the rows of a range of positions, as indices into it: at least one row.
            cut: gives the end of the window that begins at a position.
            window: most positions of a window.
            table: where the counts are kept; in memory only when None.
        """
        self._pack, self._cut, self._window, self._table = pack, cut, window, table
        self._rows, self._starts = array("q", [0]), array("q", [0])  # before each window
        self._recent: OrderedDict[int, Packed] = OrderedDict()
        self._lock = threading.Lock()
        self._load()

    def __getitem__(self, row: int) -> list[int]:
        """The positions in a row."""
        window = self.window(row)
        return [window.start + i for i in window.rows[row - window.first_row]]

    def window(self, row: int) -> Packed:
        """The window that holds a row."""
        with self._lock:
            self._count(self._rows, row)
            return self._packed(bisect.bisect_right(self._rows, row) - 1)

    def whole_windows(self, position: int) -> tuple[int, int]:
        """Rows of all windows that end at `position` or before, and where the last of them ends."""
        with self._lock:
            self._count(self._starts, position - 1)
            windows = bisect.bisect_right(self._starts, position) - 1
            return self._rows[windows], self._starts[windows]

    def count(self, rows: int) -> None:
        """Counts all windows of the first rows and keeps the table."""
        with self._lock:
            self._count(self._rows, rows - 1)
            self._save(wait=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """A lock cannot be sent to another process; what is counted goes along."""
        with self._lock:
            state = {"_rows": self._rows[:], "_starts": self._starts[:]}
        return Rows, (self._pack, self._cut, self._window, self._table), state

    def _count(self, known: array, number: int) -> None:
        """Counts windows until `known`, the rows or the positions, goes beyond a number."""
        if number - known[-1] < NEAR * self._window:
            while known[-1] <= number:
                self._extend()
                if self._table is not None and self._table.is_due(len(self._rows)):
                    self._save(wait=False)
        elif self._table is None:
            self._count_far(known, number)
        else:
            with self._table.lock() as locked:
                self._load()  # another process may have counted meanwhile
                self._count_far(known, number, self._table if locked else None)

    def _count_far(self, known: array, number: int, table: RowTable | None = None) -> None:
        """The same with a progress bar; saves now and then, and at the end."""
        if number - known[-1] > LONG:  # the bar is for terminals alone
            print(f"counting rows as far as {number + 1:,}, once", file=sys.stderr, flush=True)
        with bar(total=number + 1, initial=known[-1], desc="counting rows") as progress:
            while known[-1] <= number:
                self._extend()
                progress.update(known[-1] - progress.n)
                if table is not None and (known[-1] > number or table.is_due(len(self._rows))):
                    table.save(self._rows, self._starts)

    def _extend(self) -> None:
        packed = self._packed(len(self._starts) - 1)
        self._rows.append(packed.first_row + len(packed.rows))
        self._starts.append(packed.end)

    def _save(self, wait: bool) -> None:
        if self._table is not None:
            with self._table.lock(wait) as locked:
                if locked:
                    self._table.save(self._rows, self._starts)

    def _load(self) -> None:
        if self._table is not None:
            rows, starts = self._table.load()
            if len(rows) > len(self._rows):
                self._rows[:], self._starts[:] = rows, starts

    def _packed(self, window: int) -> Packed:
        if window not in self._recent:
            start = self._starts[window]
            end = self._cut(start)
            rows = self._pack(range(start, end))
            self._recent[window] = Packed(self._rows[window], start, end, rows)
            if len(self._recent) > max(2, _CACHED // self._window):
                self._recent.popitem(last=False)
        self._recent.move_to_end(window)
        return self._recent[window]
