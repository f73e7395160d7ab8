"""Log what a run does, one timed line for each act, on standard error of process 0.

[    0.3 s] devices: 8 x cpu; mesh data 2, fsdp 4, tensor 1
"""

import sys
import time
from collections.abc import Callable
from io import TextIOBase

from tqdm import tqdm


class Log:
    """Writes timed lines; only process 0 of a run of several does.

    Args:
        output: standard error when None.
        clock: seconds from any origin.
    """

    def __init__(
        self, output: TextIOBase | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._output, self._clock, self._start = output, clock, clock()

    @property
    def seconds(self) -> float:
        """Since the log was made."""
        return self._clock() - self._start

    def __call__(self, line: str) -> None:
        """Writes one line; a progress bar on the same terminal stays below it."""
        import jax

        if jax.process_index() == 0:
            output = sys.stderr if self._output is None else self._output
            tqdm.write(f"[{self.seconds:7.1f} s] {line}", file=output)
            output.flush()


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 20 s, 5 h 12 min, 2 d 4 h."""
    for unit, smaller, size, part in (
        ("d", "h", 86_400, 3_600),
        ("h", "min", 3_600, 60),
        ("min", "s", 60, 1),
    ):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part) * part, size)
            return f"{whole} {unit} {rest // part} {smaller}"
    return f"{seconds:.0f} s"
