"""A sweep file as runs: the product of its axes, with the overrides of every run.

axes: {share: {0: A, 20: B}, seed: {1: C, 2: D}}  ->  0-1: A C, 0-2: A D, 20-1: B C, 20-2: B D
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, closest, cut, quoted, require
from mllm_jax.config.sweep import SweepConfig

MOST = 10_000  # runs of a sweep


class Run(NamedTuple):
    """A row of the table: a run of the recipe, or a model that exists."""

    name: str
    points: Mapping[str, str]  # axis -> point; of an alias that is not of the grid, none
    overrides: Mapping[str, Any]
    model: str | None = None  # of an alias: the folder

    @property
    def arguments(self) -> list[str]:
        """The overrides as `recipe` takes them. JSON is YAML."""
        return [f"--{key}={json.dumps(value)}" for key, value in self.overrides.items()]


def read_runs(sweep: SweepConfig) -> list[Run]:
    """The runs of a sweep file in the order of its axes, aliases that are not of the grid last.

    Raises:
        ConfigError: two runs of one name or of the same overrides, a name that cannot be one of a
            folder, an override that two axes give, a name in `leave_out` that is not a run's, an
            axis of `figure` that is not there, or `x` with points that are not numbers.
    """
    grid = sweep.grid
    _check_template(sweep)
    _check_keys(sweep)
    count = math.prod(len(points) for points in grid.values())
    require(count <= MOST, f"axes: {count:,} runs; a sweep has at most {MOST:,}")
    runs: dict[str, Run] = {}
    folded: set[str] = set()
    for combination in itertools.product(*(points.items() for points in grid.values())):
        points = {axis: name for axis, (name, _) in zip(grid, combination, strict=True)}
        name = _named(sweep.name, points)
        _check_name(name, folded)
        folded.add(name.casefold())
        runs[name] = Run(name, points, _together(sweep, points) | sweep.changes.get(name, {}))
    for key, names in {"leave_out": sweep.leave_out, "changes": sweep.changes}.items():
        for name in names:
            require(name in runs, f"{key}: {quoted(name)} is not a run; {_hint(name, runs)}")
    for name, model in sweep.aliases.items():
        if name not in runs:
            _check_name(name, folded)
        runs[name] = Run(name, runs[name].points if name in runs else {}, {}, model)
    left = [run for run in runs.values() if run.name not in sweep.leave_out or run.model]
    require(any(not run.model for run in left), "leave_out: no run is left to train")
    _check_figure(sweep)
    return left


def select(runs: Iterable[Run], only: Iterable[str]) -> list[str]:
    """The names of the runs that `--only` asks for; all without it.

    Raises:
        ConfigError: a name is not a run's.
    """
    names = [run.name for run in runs]
    only = list(only)
    for name in only:
        require(name in names, f"--only: {quoted(name)} is not a run; {_hint(name, names)}")
    return [name for name in names if not only or name in only]


def _hint(name: str, names: Iterable[str]) -> str:
    near = closest(name, names)
    return f"did you mean {near!r}?" if near else f"runs are {cut(', '.join(names), 160)}"


def _named(template: str | None, points: Mapping[str, str]) -> str:
    if template is None:
        return "-".join(points.values())
    parts = Formatter().parse(template)
    return "".join(text + (points[axis] if axis is not None else "") for text, axis, _, _ in parts)


def _check_template(sweep: SweepConfig) -> None:
    if sweep.name is None:
        return
    try:
        parts = list(Formatter().parse(sweep.name))
    except ValueError as error:
        raise ConfigError(f"name={quoted(sweep.name)}: {error}") from error
    for _, axis, form, conversion in parts:
        require(
            (axis is None or axis in sweep.grid) and not form and not conversion,
            f"name={quoted(sweep.name)}: {{{cut(str(axis), 60)}}} is not an axis; write "
            f"{', '.join(f'{{{one}}}' for one in sweep.grid)}",
        )


def _check_name(name: str, folded: set[str]) -> None:
    """Some file systems do not tell capitals apart, so neither does this."""
    require(
        name.casefold() not in folded,
        f"runs: two are named {quoted(name)}; give `name` every axis, or rename a point or an "
        "alias",
    )
    require(
        bool(name) and not name.startswith((".", "-")) and "/" not in name and len(name) <= 200,
        f"runs: {quoted(name)} cannot name a folder: it is empty or longer than 200 characters, "
        "begins with a dot or a hyphen, or has a slash; rename the point",
    )


def _together(sweep: SweepConfig, points: Mapping[str, str]) -> dict[str, Any]:
    """The overrides of a run; refuses a key that two places give."""
    places = {"overrides": sweep.overrides}
    places |= {
        "runs" if axis == "run" and sweep.runs else f"axes.{axis}": sweep.grid[axis][point]
        for axis, point in points.items()
    }
    overrides: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for place, more in places.items():
        for key, value in more.items():
            require(
                key not in origin,
                f"{place}: {quoted(key)} is set by {origin.get(key)} too, and one would replace "
                "the other; set it in one place",
            )
            overrides[key], origin[key] = value, place
    return overrides


def _check_keys(sweep: SweepConfig) -> None:
    """Looks at how the keys of overrides are written; what they are of is the recipe's to know."""
    points = [("overrides", sweep.overrides)]
    points += [(f"axes.{a}", of) for a, axis in sweep.axes.items() for of in axis.values()]
    points += [("runs", of) for of in sweep.runs.values()]
    points += [("changes", of) for of in sweep.changes.values()]
    for place, overrides in points:
        for key in overrides:
            require(
                not key.startswith("-") and "=" not in key,
                f"{place}: {quoted(key)}: write a key without dashes, as align.train.steps",
            )
            require(
                key.split(".")[0] != "export",
                f"{place}: {quoted(key)}: the sweep file has its own `export`, for all runs",
            )


def _check_figure(sweep: SweepConfig) -> None:
    figure, grid = sweep.figure, sweep.grid
    if figure is None:
        return
    axes = {"x": figure.x, "line": figure.line, "over": figure.over}
    for key, axis in axes.items():
        require(
            axis is None or axis in grid,
            f"figure.{key}={quoted(axis)}: not an axis; axes are {', '.join(grid)}",
        )
    chosen = [axis for axis in axes.values() if axis is not None]
    require(
        len(set(chosen)) == len(chosen), "figure: x, line and over are three axes; name each once"
    )
    for point in grid[figure.x]:
        require(
            number(point) is not None,
            f"figure.x={figure.x}: its point {quoted(point)} is not a number; name another axis",
        )


def number(point: str) -> float | None:
    """A point's name as a number; None where it is not one."""
    try:
        value = float(point)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
