"""Row number -> positions of the mixture, by windows that are packed on their own.

A row is found by packing one window, once it is known how many rows the windows before it make:

    positions        0 ... 2047 | 2048 ... 4095 | ...        window = 2048
    rows before      0          | 211           | 419        rows 211 to 418 are of window 1
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from mllm_jax.data.packing import Window


class Rows:
    """Row number -> positions of the mixture. One count per window makes any row cheap to find.

    Thread-safe: the threads of a loader share one.
    """

    def __init__(self, pack: Callable[[range], Window], window: int, starts: Sequence[int] = (0,)):
        """`pack` gives the rows of a range of positions, as indices into it: at least one row.

        `starts` are the rows before each window, as far as they are known.
        """
        self._pack, self._window = pack, window
        self._starts = list(starts)
        self._recent: OrderedDict[int, Window] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> list[int]:
        """The positions in a row."""
        with self._lock:
            while self._starts[-1] <= row:
                self._extend()
            window = bisect.bisect_right(self._starts, row) - 1
            packed = self._packed(window)
            return [window * self._window + i for i in packed[row - self._starts[window]]]

    def before(self, position: int) -> int:
        """Rows, counted from the first, until every position below `position` has been in one."""
        window, offset = divmod(position, self._window)
        with self._lock:
            while len(self._starts) <= window:
                self._extend()
            # rows of a window are in order of their first positions
            part = sum(row[0] < offset for row in self._packed(window)) if offset else 0
            return self._starts[window] + part

    def __reduce__(self) -> tuple[Any, ...]:
        """A lock cannot be sent to another process."""
        return Rows, (self._pack, self._window, self.starts)

    @property
    def starts(self) -> list[int]:
        """Rows before window 0, 1, ... as far as they are known."""
        with self._lock:
            return list(self._starts)

    def _extend(self) -> None:
        self._starts.append(self._starts[-1] + len(self._packed(len(self._starts) - 1)))

    def _packed(self, window: int) -> Window:
        if window not in self._recent:
            first = window * self._window
            self._recent[window] = self._pack(range(first, first + self._window))
            if len(self._recent) > 64:
                self._recent.popitem(last=False)
        self._recent.move_to_end(window)
        return self._recent[window]
