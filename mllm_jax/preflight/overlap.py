"""Tells which collectives of a compiled program run beside products, and which ones are waited for.

A program is a list of lines in the order in which a device runs them. A collective that is waited
for is one line. One that runs beside other work has a beginning and an end:

    all-gather-start   ...   all-gather-done          GPUs; permutes of TPUs
    fusion with the channel's all-gather, a second one that holds a product too, a third   TPUs

It is overlapped if a product (of matrices, or a kernel's) is computed between them.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mllm_jax.preflight.program import Instruction, Program, called

PRODUCTS = ("dot", "convolution")
# targets of custom calls that compute: cuBLAS and cuDNN, Pallas on TPUs and on GPUs
KERNELS = re.compile(
    r"custom_call_target=\"[^\"]*(gemm|matmul|cudnn|fmha|tpu_custom_call|triton|mosaic)"
)
CALLS = ("calls", "body", "to_apply", "branch_computations")


class Span(NamedTuple):
    """Lines of a computation, by number."""

    first: int
    last: int

    def joined(self, other: "Span") -> "Span":
        """The smallest span that holds both."""
        return Span(min(self.first, other.first), max(self.last, other.last))


class Products:
    """Where a program computes products."""

    def __init__(self, program: Program):
        self._program = program
        self._holds: dict[str, bool] = {}

    def lines(self, computation: str) -> list[int]:
        """Numbers of the lines that compute a product, in themselves or in what they call."""
        lines = enumerate(self._program[computation])
        return [number for number, line in lines if self._computes(line)]

    def _computes(self, line: Instruction) -> bool:
        if line.opcode in PRODUCTS:
            return True
        if line.opcode == "custom-call":
            return KERNELS.search(line.text) is not None
        return any(map(self._within, called(line, *CALLS)))

    def _within(self, computation: str) -> bool:
        if computation not in self._holds:
            lines = self._program.get(computation, [])
            self._holds[computation] = any(map(self._computes, lines))
        return self._holds[computation]


def ends(lines: list[Instruction]) -> dict[str, int]:
    """{name of a line that starts something: number of the line that ends it}.

    One that the computation does not end runs until its last line.
    """
    started = {line.name: line.name for line in lines if line.opcode.endswith("-start")}
    ended = dict.fromkeys(started, len(lines) - 1)
    for number, line in enumerate(lines):
        source = next((started[name] for name in line.operands if name in started), None)
        if source is None:
            continue
        if line.opcode.endswith("-done"):
            ended[source] = number
        elif line.opcode.endswith("-update"):
            started[line.name] = source
    return ended


def overlapped(span: Span, products: list[int]) -> bool:
    """Whether a product is computed within a span of several lines."""
    return span.first < span.last and any(span.first <= n <= span.last for n in products)


def begun(lines: list[Instruction]) -> Iterator[tuple[str, Span]]:
    """(computation, span) of what is wrapped in `async-start`, as GPU programs do."""
    last = ends(lines)
    for number, line in enumerate(lines):
        if line.opcode == "async-start":
            for computation in called(line, "calls"):
                yield computation, Span(number, last[line.name])
