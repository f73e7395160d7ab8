"""Counts the collectives of a compiled step, with every iteration of its loops, from its text.

A scan over layers, microbatches or chunks of the loss is a `while` of the program: its body runs
once per iteration, and loops are nested. The compiler's own figures count a body once.

    ENTRY            all-reduce                              1 x
      while x 16       (microbatches)
        all-reduce                                          16 x
        while x 32     (layers)  all-gather, reduce-scatter  16 x 32 = 512 x

Bytes are those one device sends over its links, for a ring over n devices:

    all-gather          whole result x (n - 1) / n
    reduce-scatter      whole input  x (n - 1) / n
    all-reduce          whole input  x 2 (n - 1) / n      a reduce-scatter and an all-gather
    all-to-all          whole input  x (n - 1) / n
    collective-permute  whole input

Source of the ring's cost: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from mllm_jax.common import loops
from mllm_jax.common.errors import RunError
from mllm_jax.preflight.overlap import Products, Span, begun, ends, overlapped
from mllm_jax.preflight.program import (
    Instruction,
    Program,
    arrays,
    called,
    device_groups,
    op_name,
    parse,
    shape_bytes,
)

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# how many times a kind sends (n - 1) / n of its array, if not once
PASSES = {"all-reduce": 2.0}


class Collective(NamedTuple):
    """One collective of the program."""

    kind: str  # of KINDS
    shape: str  # of what is moved, as the program writes it: "bf16[4096,14336]"
    payload: int  # bytes of the whole array, on one device
    group: int  # devices that take part
    count: int  # how many times a step runs it
    where: str  # the operation of the source it comes from
    overlapped: bool = False  # whether products are computed between its start and its end

    @property
    def sent(self) -> int:
        """Bytes that one device sends for it in a step."""
        share = 1.0
        if self.kind != "collective-permute":
            share = PASSES.get(self.kind, 1.0) * (self.group - 1) / self.group
        return round(self.payload * share) * self.count


def collectives(text: str) -> list[Collective]:
    """All collectives that a step runs, of a program's text (`compiled.as_text()`).

    Raises:
        RunError: a loop with collectives in it whose number of iterations cannot be read.
    """
    program, entry = parse(text)
    products = Products(program)
    by_key: dict[str, Collective] = {}
    for running in _running(program, entry, products):
        for key, one in _of(program, running, products).items():
            if key not in by_key or one.count < by_key[key].count:
                by_key[key] = one
    return list(by_key.values())


# --------------------------------------------------------------------------------------------- walk


class _Running(NamedTuple):
    """A computation that runs by itself: not fused, not a reducer."""

    computation: str
    iterations: int  # in a step
    overlapped: bool = False  # whether it was started, and ends after a product


def _running(program: Program, entry: str, products: Products) -> Iterator[_Running]:
    waiting = [_Running(entry, 1)]
    while waiting:
        running = waiting.pop()
        yield running
        computation, iterations, _ = running
        computing = products.lines(computation)
        for started, span in begun(program[computation]):
            waiting.append(_Running(started, iterations, overlapped(span, computing)))
        for line in program[computation]:
            if line.opcode == "while":
                body = called(line, "body")[0]
                once = trips(program, line, computation)
                if once is None and _any(program, body):
                    raise RunError(
                        f"{line.name}: a loop with collectives whose iterations are not known; "
                        "the program cannot be counted"
                    )
                waiting.append(_Running(body, iterations * (1 if once is None else once)))
            elif line.opcode in ("call", "conditional"):
                names = ("to_apply", "calls", "branch_computations", "true_computation")
                names += ("false_computation",)
                waiting += [_Running(name, iterations) for name in called(line, *names)]


def _any(program: Program, entry: str) -> bool:
    """Whether this computation, or one it calls, holds a collective."""
    seen, waiting = set(), [entry]
    while waiting:
        computation = waiting.pop()
        if computation in seen or computation not in program:
            continue
        seen.add(computation)
        for line in program[computation]:
            if line.opcode.removesuffix("-start") in KINDS:
                return True
            waiting += called(line, "body", "calls", "to_apply", "branch_computations")
    return False


def trips(program: Program, loop: Instruction, home: str) -> int | None:
    """Iterations of a `while`: as the compiler notes them, else from its counter; None if unknown.

    Of a loop whose length is data, the most there can be (`loops.at_most`).

    The counter starts at a constant, rises by one, and is held against a bound. A loop that the
    compiler unrolled twice rises by two.
    """
    if (most := loops.bound(op_name(loop))) is not None:
        return most
    if known := re.search(r'known_trip_count[^}]*?"n":"?(\d+)', loop.text):
        return int(known[1])
    condition, body = called(loop, "condition")[0], called(loop, "body")[0]
    test = _root(program, condition)
    names = test.operands
    if test.opcode == "fusion":  # a comparison alone in a fusion of its own
        test = _root(program, called(test, "calls")[0])
    counter = _line(program, condition, names[0]) if names else None
    if test.opcode != "compare" or "direction=LT" not in test.text or len(names) != 2:
        return None
    place = None if counter is None else re.search(r"index=(\d+)", counter.text)
    if place is None:
        return None
    start = _value(program, loop, home, condition, names[0])
    bound = _value(program, loop, home, condition, names[1])
    step = _step(program, loop, home, body, int(place[1]))
    if start is None or bound is None or not step:
        return None
    return max(0, -(-(bound - start) // step))


def _step(program: Program, loop: Instruction, home: str, body: str, index: int) -> int | None:
    """By how much an iteration raises the loop's number `index`: the constants added to it."""
    total, name = 0, _root(program, body).operands[index]
    while (line := _line(program, body, name)) is not None and line.opcode != "get-tuple-element":
        if line.opcode == "copy":
            name = line.operands[0]
            continue
        if line.opcode != "add":
            return None
        added = [_value(program, loop, home, body, operand) for operand in line.operands]
        constants = [
            (operand, value)
            for operand, value in zip(line.operands, added, strict=True)
            if value is not None and not _is_number(program, body, operand, index)
        ]
        if len(constants) != 1:
            return None
        total += constants[0][1]
        name = next(operand for operand in line.operands if operand != constants[0][0])
    return total


def _is_number(program: Program, body: str, name: str, index: int) -> bool:
    """Whether a name is the loop's number `index` itself, before the iteration changes it."""
    line = _line(program, body, name)
    return (
        line is not None
        and line.opcode == "get-tuple-element"
        and re.search(rf"index={index}\b", line.text) is not None
    )


def _value(program: Program, loop: Instruction, home: str, place: str, name: str) -> int | None:
    """The constant behind a name in a loop's condition, there or in what the loop starts with."""
    line = _line(program, place, name)
    if line is not None and line.opcode == "get-tuple-element":
        index = re.search(r"index=(\d+)", line.text)
        start = _line(program, home, loop.operands[0])
        if index is None or start is None or start.opcode != "tuple":
            return None
        line = _line(program, home, start.operands[int(index[1])])
    while line is not None and line.opcode in ("copy", "bitcast") and line.operands:
        line = _line(program, home, line.operands[0])
    if line is None or line.opcode != "constant" or not line.inside.lstrip("-").isdigit():
        return None
    return int(line.inside)


def _line(program: Program, computation: str, name: str) -> Instruction | None:
    return next((line for line in program[computation] if line.name == name), None)


def _root(program: Program, computation: str) -> Instruction:
    return next(line for line in program[computation] if line.root)


# -------------------------------------------------------------------------------------- collectives


def _of(program: Program, running: _Running, products: Products) -> dict[str, Collective]:
    """Those of one computation and of what is fused in it, each channel once.

    TPU programs spread one collective over several fusions, all with its channel's number: start,
    progress beside a product, end. It may start before a loop and progress in its body: the
    computation that runs least often tells how many times it is run.
    """
    lines = program[running.computation]
    computing, last = products.lines(running.computation), ends(lines)
    by_name: dict[str, Collective] = {}
    spans: dict[str, Span] = {}
    for number, place, line, around in _flat(program, running.computation):
        kind = line.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if place.startswith("all-reduce-scatter"):  # TPU: an all-reduce of which a slice is kept
            kind = "reduce-scatter"
        source = op_name(line) or around or line.name
        one = _collective(program[place], line, kind, running.iterations, source)
        channel = next(iter(re.findall(r"channel_id=(\d+)", line.text)), None)
        # all that shard_map writes have the channel 1, and the permutes of a decomposed product one
        # of their own; they are not spread
        apart = channel == "1" or kind == "collective-permute"
        alone = channel is None or (apart and place == running.computation)
        name = f"{place} {line.name}" if alone else f"{channel} {one.shape} {one.group}"
        key, span = f"{kind} {name}", Span(number, last.get(line.name, number))
        by_name.setdefault(key, one)
        spans[key] = spans.get(key, span).joined(span)
    return {
        key: one._replace(overlapped=running.overlapped or overlapped(spans[key], computing))
        for key, one in by_name.items()
    }


def _flat(program: Program, computation: str) -> Iterator[tuple[int, str, Instruction, str]]:
    """Lines of a computation and of what it fuses.

    Yields:
        (number of the computation's line, computation, line, source of the fusion around it).
    """
    for number, line in enumerate(program[computation]):
        yield number, computation, line, ""
        if line.opcode == "fusion":
            for fused in called(line, "calls"):
                for _, place, inner, around in _flat(program, fused):
                    yield number, place, inner, around or op_name(line)


def _collective(
    place: list[Instruction], line: Instruction, kind: str, iterations: int, where: str
) -> Collective:
    moved = shape_bytes(line.shape)
    shape = line.shape
    if kind == "all-gather" and line.opcode.endswith("-start"):
        moved = moved[len(moved) // 2 :]  # (inputs, results)
    elif kind != "all-gather":
        inputs = [next((x for x in place if x.name == name), None) for name in line.operands]
        shape = ", ".join(x.shape for x in inputs if x is not None) or line.inside
        moved = shape_bytes(shape)
    return Collective(kind, _plain(shape), sum(moved), _group_size(line), iterations, where)


def _plain(shape: str) -> str:
    """A shape without layouts."""
    return ", ".join(f"{kind}[{','.join(map(str, dims))}]" for kind, dims in arrays(shape))


def _group_size(line: Instruction) -> int:
    """Devices of one group. Raises RunError where the program does not say."""
    groups = device_groups(line)
    if not groups:
        raise RunError(f"{line.name}: the compiled program does not say which devices take part")
    return len(groups[0])


def summary(operations: list[Collective]) -> dict[str, dict[str, int]]:
    """What a step sends, by kind.

    Returns:
        {kind: {"operations": how many run in a step, "bytes": what one device sends, "overlapped":
        how many of them beside products}}.
    """
    kinds: dict[str, dict[str, int]] = defaultdict(
        lambda: {"operations": 0, "bytes": 0, "overlapped": 0}
    )
    for one in operations:
        kinds[one.kind]["operations"] += one.count
        kinds[one.kind]["bytes"] += one.sent
        kinds[one.kind]["overlapped"] += one.sent if one.overlapped else 0
    return {kind: kinds[kind] for kind in KINDS if kind in kinds}
