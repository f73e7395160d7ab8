"""Defines the options of a sweep: a recipe run many times, with other overrides in every run.

recipe: recipe.yaml
axes: {share: {0: {...}, 20: {...}}, seed: {1: {instruct.seed: 1}, 2: {instruct.seed: 2}}}
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import NameText, PathText, Section, Size, Text

Key = Annotated[str, Text(200)]
Point = Annotated[dict[Key, Any], Size("[0, 1_000]")]
Points = Annotated[dict[NameText, Point], Size("[1, 1_000]", "give it a point at least")]


@dataclass(frozen=True)
class FigureConfig(Section, at="figure"):
    """What the figures show: a score against the points of an axis.

    Points of axes that are not named here get figures of their own.
    """

    x: NameText
    """Axis whose points are numbers, from left to right."""
    line: NameText | None = None
    """Axis whose points are lines; every language has a line of its own too."""
    over: NameText | None = None
    """Axis whose points are averaged, as seeds; bars are from the lowest to the highest."""


@dataclass(frozen=True)
class SweepConfig(Section):
    """A recipe and what differs between its runs.

    A run is a point of every axis: their overrides together. What several runs share is trained
    once.
    """

    recipe: PathText
    """Recipe file, relative to the sweep file."""
    out: PathText = "runs/sweep"
    """Folder of the sweep."""
    overrides: Point = field(default_factory=dict)
    """Overrides of every run, as `instruct.train.steps: 300`; null removes a section or stream."""
    axes: Annotated[dict[NameText, Points], Size("[0, 100]")] = field(default_factory=dict)
    """Axes of the grid: axis -> point -> overrides. Every combination of points is a run."""
    runs: Annotated[dict[NameText, Point], Size("[0, 10_000]")] = field(default_factory=dict)
    """Runs by name, instead of axes; beside axes they are one more axis, named `run`."""
    name: Annotated[str, Text(200)] | None = None
    """Name of a run, as `{share}-{backbone}`; by default its points, joined by hyphens."""
    changes: Annotated[dict[NameText, Point], Size("[0, 10_000]")] = field(default_factory=dict)
    """Overrides of single runs, by name; they replace those of the run's points."""
    leave_out: Annotated[tuple[NameText, ...], Size("[0, 10_000]")] = ()
    """Names of runs of the grid that are not trained."""
    aliases: Annotated[dict[NameText, PathText], Size("[0, 1_000]")] = field(default_factory=dict)
    """Rows of the table that are evaluated, not trained: name -> model, run or Hugging Face folder.

    A name of the grid takes the place of that run.
    """
    figure: FigureConfig | None = None
    """What the figures show; none by default."""
    export: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of a Hugging Face folder of every run; null for no export."""

    def __post_init__(self):
        super().__post_init__()
        require(
            bool(self.axes or self.runs),
            "sweep: give axes (a grid) or runs (a list): there is nothing to run",
        )
        require(
            not self.runs or "run" not in self.axes,
            "axes.run: the name is taken by `runs`; rename the axis",
        )

    @property
    def grid(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The axes, `runs` as the last of them."""
        return self.axes | ({"run": self.runs} if self.runs else {})
