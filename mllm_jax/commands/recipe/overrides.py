"""Sorts the overrides of a recipe: for all its stages, for one of them, for the recipe itself.

--train.steps 10            every stage
--align.train.steps 10      the stage of align.yaml; counts more than one for every stage
--evaluate.rows 8           the recipe's own section; so is --export null
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mllm_jax.common.errors import ConfigError, closest, cut, quoted, require
from mllm_jax.config.loading import split_flags
from mllm_jax.config.stage import Config

SECTIONS = [field.name for field in dataclasses.fields(Config)]
OWN = ("evaluate", "export")  # of the recipe file


class Overrides(NamedTuple):
    """Overrides by what they change, written as `loading.load` takes them."""

    recipe: Sequence[str] = ()
    every: Sequence[str] = ()
    single: Mapping[str, Sequence[str]] = {}  # stage -> its own

    def of(self, stage: str) -> list[str]:
        """Those of one stage; later ones win."""
        return [*self.every, *self.single.get(stage, ())]


NONE = Overrides()


def sort_overrides(arguments: Sequence[str], stages: Sequence[str]) -> Overrides:
    """Sorts the overrides of a command line.

    Args:
        arguments: `--section.key value`, `--STAGE.section.key value`, or either with `=`.
        stages: names of the recipe's stages.

    Raises:
        ConfigError: the first part of a key is not a section, a stage, or the recipe's own.
    """
    of_recipe: list[str] = []
    every: list[str] = []
    single: dict[str, list[str]] = {stage: [] for stage in stages}
    for flag, value in split_flags(arguments):
        key = flag.removeprefix("--")
        stage = next((name for name in stages if key.startswith(f"{name}.")), None)
        first = key.split(".")[0]
        if first in OWN:
            of_recipe += flag, value
        elif first in SECTIONS:
            _check_stage_key(flag, first)
            every += flag, value
        elif stage is not None:
            rest = key.removeprefix(f"{stage}.")
            _check_stage_key(flag, rest.split(".")[0])
            single[stage] += f"--{rest}", value
        else:
            raise ConfigError(_unknown(flag, first, [*SECTIONS, *OWN, *stages]))
    return Overrides(of_recipe, every, single)


def _check_stage_key(flag: str, first: str) -> None:
    """A stage's folder and weights are the recipe's to say."""
    require(
        first != "out",
        f"{cut(flag, 80)}: a recipe names the folders of its stages; give --out DIR for them all",
    )
    require(first in SECTIONS, _unknown(flag, first, SECTIONS))


def _unknown(flag: str, first: str, names: Sequence[str]) -> str:
    near = closest(first, names)
    hint = f"did you mean {near!r}?" if near else f"allowed are {', '.join(names)}"
    return f"{cut(flag, 80)}: {quoted(first, 60)} is not a section or a stage; {hint}"
