"""Read a run's metrics.jsonl: a curve for every number that a report draws, and the last totals.

One line a step; a line may hold only some of the numbers. Numbers that were not finite are null in
the file and NaN here.
"""

import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.json_file import NotJSON, loads

DRAWN = ("loss", "heldout/", "learning_rate/", "grad_norm", "real_tokens_per_second")
DRAWN += ("data_wait_share", "padding_share", "step_seconds", "mfu")
TOTALS = ("share_", "total_records/")


class Metrics(NamedTuple):
    """The numbers of a run."""

    curves: Mapping[str, list[tuple[float, float]]]  # key -> (number of steps done, value)
    totals: Mapping[str, float]  # of the last step that has them: cumulative shares and counts
    steps: int  # done

    def total(self, key: str) -> float:
        """The sum of a curve's finite values; 0 where there are none."""
        return sum(y for _, y in self.curves.get(key, []) if math.isfinite(y))

    def middle(self, key: str) -> float | None:
        """The median of a curve's finite values."""
        values = sorted(y for _, y in self.curves.get(key, []) if math.isfinite(y))
        return values[len(values) // 2] if values else None

    def under(self, prefix: str) -> dict[str, list[tuple[float, float]]]:
        """The curves whose keys start with `prefix`, by the rest of their keys."""
        return {k.removeprefix(prefix): v for k, v in self.curves.items() if k.startswith(prefix)}


def read_metrics(path: Path) -> Metrics:
    """All lines of a metrics.jsonl.

    A last line without a line end is still being written and left out.

    Raises:
        ConfigError: the file is missing, has no line, or a line is not one of metrics (named).
    """
    require(path.is_file(), f"{path}: no such file; the run has no steps to report yet")
    steps: dict[str, array] = {}
    values: dict[str, array] = {}
    totals: dict[str, float] = {}
    done = 0
    for line in _lines(path):
        done = max(done, line["step"] + 1)
        for key, value in line.items():
            if key.startswith(DRAWN):
                steps.setdefault(key, array("d")).append(line["step"] + 1)
                values.setdefault(key, array("d")).append(math.nan if value is None else value)
        totals |= {k: v for k, v in line.items() if k.startswith(TOTALS) and v is not None}
    require(done > 0, f"{path}: is empty; the run has no steps to report yet")
    curves = {key: list(zip(steps[key], values[key], strict=True)) for key in steps}
    return Metrics(curves, totals, done)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a last line without a line end is left out.

    Raises:
        ConfigError: a line that is not a JSON object, with its number.
    """
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if not data.endswith(b"\n"):
                return
            try:
                line = loads(data)
            except NotJSON as error:
                raise ConfigError(f"{path}:{number}: not JSON: {error.reason}") from error
            require(isinstance(line, dict), f"{path}:{number}: not a JSON object")
            yield line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), start=1):
        numbers = (value is None or type(value) in (int, float) for value in line.values())
        require(
            type(line.get("step")) is int and all(numbers),
            f"{path}:{number}: not a line of metrics",
        )
        yield line
