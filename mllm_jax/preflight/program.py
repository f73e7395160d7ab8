"""Parses the text of a compiled program, as XLA prints it, into computations and instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mllm_jax.common.errors import RunError

END = "}"  # the line behind a computation
INSTRUCTION = r"\s+(ROOT )?%?([\w.\-]+) = "  # how a line of one begins
WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}


class Instruction(NamedTuple):
    """One line of the program."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str  # what follows the operands
    inside: str  # the parentheses' text
    root: bool


Program = dict[str, list[Instruction]]  # computation -> its lines


def parse(text: str) -> tuple[Program, str]:
    """A program's text -> {computation: instructions}, and the name of the first one to run."""
    program: Program = {}
    entry, lines = "", None
    for line in _whole_lines(text):
        if lines is None:
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line):
                lines = program.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif line == END:
            lines = None
        elif (instruction := _instruction(line)) is not None:
            lines.append(instruction)
    return program, entry


def _whole_lines(text: str) -> Iterator[str]:
    """The program's lines; an instruction whose attributes take several is one."""
    inside: list[str] = []
    for line in text.splitlines():
        # a kernel's own metadata may hold line breaks: `"block_q": 128 ...` and `}}, metadata=`
        if inside and line and line != END and not line[0].isspace():
            inside.append(line)
            continue
        yield from ["".join(inside)] if inside else []
        inside = [line] if re.match(INSTRUCTION, line) else []
        if not inside:
            yield line


def _instruction(line: str) -> Instruction | None:
    head = re.match(INSTRUCTION, line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[2], shape, opcode, operands, rest[close + 1 :], inside, bool(head[1]))


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text)


def called(line: Instruction, *attributes: str) -> list[str]:
    """Computations named by these attributes: body=%x, branch_computations={%x, %y}."""
    names = []
    for name in attributes:
        for one, several in re.findall(rf"\b{name}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", line.text):
            names += [one] if one else re.findall(r"%?([\w.\-]+)", several)
    return names


def op_name(line: Instruction) -> str:
    """The operation of our code that a line comes from; empty if it does not say."""
    match = re.search(r'op_name="([^"]*)"', line.text)
    return match[1] if match else ""


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(number format, dimensions) of all array shapes in a piece of a program, in their order."""
    shapes = re.findall(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]", text)
    return [(kind, tuple(_numbers(dimensions))) for kind, dimensions in shapes]


def shape_bytes(shape: str) -> list[int]:
    """Bytes of every array of a shape: "(f32[4,8]{1,0}, bf16[2])" -> [128, 4]."""
    return [math.prod(dimensions) * _width(kind) for kind, dimensions in arrays(shape)]


def _width(kind: str) -> int:
    bits = re.fullmatch(r"[su](\d+)", kind)
    return WIDTHS.get(kind, 1) if bits is None else max(1, int(bits[1]) // 8)


# ----------------------------------------------------------------------------------- device groups


def device_groups(line: Instruction) -> list[list[int]]:
    """The device numbers of each group of a collective; [] where all devices are one group.

    XLA writes them in four ways: {{0,1},{2,3}}, [2,4]<=[8], mesh['a'=2,'b'=4] {'b'}, and
    source_target_pairs={{0,1},{1,0}}. The devices of a list may be in another order,
    [2,4]<=[4,2]T(1,0), and a mesh may name its devices before the axes:
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}.

    Raises:
        RunError: another way to write them.
    """
    text = line.text
    if "replica_groups={}" in text:
        return []
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", text):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if match := re.search(r"replica_groups=\[(\d+,\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _device_order(match[2]).reshape(_numbers(match[1])).tolist()
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}:]+)\}"
    if match := re.search(mesh, text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
        order = _device_order(match[2] or f"[{math.prod(sizes.values())}]")
        axes = [list(sizes).index(name) for name in re.findall(r"'([^']*)'", match[3])]
        last = np.moveaxis(order.reshape(list(sizes.values())), axes, range(-len(axes), 0))
        return last.reshape(-1, math.prod(last.shape[-len(axes) :])).tolist()
    raise RunError(f"the compiled program groups devices in a way that is not known: {text:.200}")


def _device_order(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers 0..7 in two rows of four, transposed."""
    sizes, _, axes = text.strip("[)").partition("]")
    order = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return order.transpose(_numbers(axes.removeprefix("T("))) if axes else order


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
