"""Defines the section `adapter`: low-rank updates (LoRA, DoRA) of matrices that stay frozen.

    y = x W + scale (x A) B        W frozen, A [inputs, rank] and B [rank, outputs] trained
    y = x (m V / |V|)              DoRA: V = W + scale A B, |V| and m [outputs] by column; m trained

The parameters of an adapter are named after the matrix that they change:

    language/layers/attention/q/kernel     [L, D, N, H]   frozen
    language/layers/attention/q/lora_a     [L, D, rank]
    language/layers/attention/q/lora_b     [L, rank, N, H]
    language/layers/attention/q/lora_magnitude   [L, N, H]   DoRA's m

With `base: int8` a device holds a matrix of the language layers as two arrays (`common/int8.py`):

    language/layers/attention/q/kernel         int8      [L, D, N, H]
    language/layers/attention/q/kernel_scale   bfloat16  [L, D / 64, N, H]
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from mllm_jax.common.errors import closest, quoted, require
from mllm_jax.common.patterns import matches
from mllm_jax.common.ranges import PatternText, Range, Section

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
NAMES = (A, B, MAGNITUDE)
PART = "adapter"  # part of the optimizer that claims their parameters
KERNEL, KERNEL_SCALE = "kernel", "kernel_scale"
INT8 = re.compile(r"language/layers/(attention|mlp)/\w+/kernel")  # what `base: int8` speaks of
# the matrices that may have an adapter
ADAPTABLE = re.compile(r"(vision|language)/layers/(attention|mlp)/\w+/kernel|connector/\w+/kernel")
SHOWN = 3  # paths named in a message


@dataclass(frozen=True)
class AdapterConfig(Section, at="adapter"):
    """LoRA, DoRA: trains two narrow matrices beside each chosen one, which itself stays frozen."""

    match: PatternText
    """Regex over whole paths of matrices, as `language/layers/.*/kernel`; each gets an adapter."""
    rank: Annotated[int, Range("[1, 65_536]")] = 16
    """Width of the two narrow matrices."""
    alpha: Annotated[float, Range("(0, 1_000_000]")] = 32.0
    """Strength of the update, which is multiplied by `alpha / rank`."""
    rslora: bool = False
    """Multiply by `alpha / sqrt(rank)` instead (rsLoRA), so that high ranks learn as fast."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction (DoRA).

    The lengths begin as those of the frozen matrix and have no weight decay. The
    gradient takes the length of the changed weights as a constant, as the paper and PEFT do.
    """
    base: Literal["compute", "int8"] = "compute"
    """Number format of the frozen language layers' matrices: `compute.compute`, or int8.

    In int8 they take half the memory of bfloat16; a layer at a time is turned back where it is
    used. What is exported, and what the next stage begins with, is the base as it came.
    """
    dropout: Annotated[float, Range("[0, 1)")] = 0.0
    """Share of an adapter's inputs that are set to 0 in training, others for each position.

    The choice follows from the seed, the step and the text or image before the position, so it is
    the same on any devices, in any row, and after a resume.
    """
    init: Literal["uniform", "normal"] = "uniform"
    """First values of the input side, as PEFT's: `uniform` (Kaiming) or `normal` (its gaussian).

    `uniform` lies within 1 / sqrt(inputs), `normal` has the deviation 1 / rank. The output side
    begins with zeros, so that training begins with the frozen model.
    """
    learning_rate: Annotated[float, Range("(0, 100]")] | None = None
    """Peak learning rate of the adapters; by default `optimizer.learning_rate`."""

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def targets(self, paths: Iterable[str]) -> list[str]:
        """The matrices among a model's parameters that get an adapter.

        Raises:
            ConfigError: `match` matches none, or parameters that cannot have one.
        """
        paths = list(paths)
        matched = [path for path in paths if matches(self.match, path, "adapter.match")]
        possible = [path for path in paths if ADAPTABLE.fullmatch(path)]
        wrong = [path for path in matched if path not in possible]
        where = f"adapter.match={quoted(self.match)}"
        require(
            not wrong,
            f"{where} matches {_listed(wrong)}, which cannot have an adapter (norms, biases, "
            "embeddings and the head); end it with /kernel, as language/layers/.*/kernel",
        )
        near = closest(self.match, possible) or possible[-1]
        require(
            len(matched) > 0,
            f"{where} matches no matrix of the model; it must match whole paths, as {near}",
        )
        return matched

    def int8_kernels(self, paths: Iterable[str]) -> list[str]:
        """The matrices among a model's parameters that devices hold in int8."""
        return [path for path in paths if self.base == "int8" and INT8.fullmatch(path)]


def is_scale(path: str) -> bool:
    """Whether this is no parameter of a model, but the scales of one that is held in int8."""
    return path.rpartition("/")[2] == KERNEL_SCALE


def is_adapter(path: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return path.rpartition("/")[2] in NAMES


def kernel_of(path: str) -> str:
    """Path of the matrix that the adapter with this parameter changes, or that has these scales."""
    return f"{path.rpartition('/')[0]}/{KERNEL}"


def inputs_of(kernel: str) -> int:
    """How many dimensions of a matrix are inputs, those of its layers not counted; the first ones.

    An attention's output matrix [N, H, D] has two, every other one has one.
    """
    return 2 if kernel.endswith("/attention/out/kernel") else 1


def stacked(path: str) -> int:
    """How many leading dimensions of a parameter count layers: 1 or 0."""
    return int("/layers/" in path)


def shapes(
    kernel: str, shape: tuple[int, ...], rank: int, dora: bool
) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters of one adapter.

    Args:
        kernel: path of the matrix.
        shape: of it, layers first.
        rank, dora: of the adapter.
    """
    layers, rest = shape[: stacked(kernel)], shape[stacked(kernel) :]
    inputs, outputs = rest[: inputs_of(kernel)], rest[inputs_of(kernel) :]
    beside = kernel.removesuffix(KERNEL)
    narrow = {beside + A: (*layers, *inputs, rank), beside + B: (*layers, rank, *outputs)}
    return narrow | ({beside + MAGNITUDE: (*layers, *outputs)} if dora else {})


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
