"""Parses the text of a compiled program, as XLA prints it, into computations and instructions."""

import math
import re
from typing import NamedTuple

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
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
            lines = program.setdefault(head[2], []) if head else None
            entry = head[2] if head and head[1] else entry
        elif lines is not None and (instruction := _instruction(line)) is not None:
            lines.append(instruction)
    return program, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
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


def shape_bytes(shape: str) -> list[int]:
    """Bytes of every array of a shape: "(f32[4,8]{1,0}, bf16[2])" -> [128, 4]."""
    return [
        math.prod(int(n) for n in dimensions.split(",") if n) * _width(kind)
        for kind, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    ]


def _width(kind: str) -> int:
    bits = re.fullmatch(r"[su](\d+)", kind)
    return WIDTHS.get(kind, 1) if bits is None else max(1, int(bits[1]) // 8)
