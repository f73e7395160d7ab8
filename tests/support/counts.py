"""Counts what compiled programs do: a table that a default test compares, and writes on request.

Nothing here is timed, so the numbers are the same on any machine with this version of JAX:

    flops, bytes            the compiler's own counts; the body of a loop counts once
    product_flops           of all products, every iteration of every loop counted
    instructions            that a step runs one by one, iterations counted
    temporary               bytes that the program takes beside its arguments and results
    copied                  bytes that copies and transpositions write, iterations counted
    filled                  bytes of arrays of one number (stacks of zeros above all), likewise

    python -m tests.support.counts > tests/support/counts.yaml
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tests.conftest  # noqa: F401  # as the tests run: one set of flags for XLA  # isort: skip
import jax
import jax.numpy as jnp
import yaml

from mllm_jax.batch import ModelInputs
from mllm_jax.commands.bench.work import from_size, synthetic
from mllm_jax.config.model import ModelConfig
from mllm_jax.distributed import sharding
from mllm_jax.generation import programs
from mllm_jax.models import mllm
from mllm_jax.preflight import hlo, program
from mllm_jax.training.setup import compile_train_step, make_setup
from tests.support import unstacked

NOTHING = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call")


class Run(NamedTuple):
    """An instruction, and how many times a step runs it."""

    line: program.Instruction
    home: str  # its computation
    times: int
    alone: bool  # False: part of a fusion


def instructions(parsed: program.Program, entry: str) -> Iterator[Run]:
    """Everything that a program runs, with every iteration of its loops.

    A loop whose length is data, and says no bound, counts once: a token in decoding.
    """
    waiting = [(entry, 1, True)]
    while waiting:
        home, times, alone = waiting.pop()
        for line in parsed[home]:
            yield Run(line, home, times, alone)
            if line.opcode == "while":
                turns = hlo.trips(parsed, line, home)
                body = program.called(line, "body")[0]
                waiting.append((body, times * (1 if turns is None else turns), alone))
            elif line.opcode in ("fusion", "call", "conditional"):
                names = ("calls", "to_apply", "branch_computations")
                inside = alone and line.opcode != "fusion"
                waiting += [(name, times, inside) for name in program.called(line, *names)]


def product_flops(parsed: program.Program, run: Run) -> int:
    """Of a `dot`: two for every element of the result and of the summed dimensions."""
    shapes = {line.name: line.shape for line in parsed[run.home]}
    ((_, left),) = program.arrays(shapes[run.line.operands[0]])
    ((_, result),) = program.arrays(run.line.shape)
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", run.line.text)
    assert summed is not None
    return 2 * math.prod(result) * math.prod(left[int(d)] for d in summed[1].split(",") if d)


def of_program(compiled: Any) -> dict[str, int]:
    """The table of one compiled program."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    parsed, entry = program.parse(compiled.as_text())
    runs = list(instructions(parsed, entry))

    def written(*opcodes: str) -> int:
        """Bytes that instructions of this kind write, alone or as the end of a fusion."""
        made = [run for run in runs if run.alone and _end(parsed, run).opcode in opcodes]
        return sum(run.times * sum(program.shape_bytes(run.line.shape)) for run in made)

    return {
        "flops": int(cost["flops"]),
        "bytes": int(cost["bytes accessed"]),
        "temporary": memory.temp_size_in_bytes,
        "product_flops": sum(
            run.times * product_flops(parsed, run) for run in runs if run.line.opcode == "dot"
        ),
        "instructions": sum(r.times for r in runs if r.alone and r.line.opcode not in NOTHING),
        "copied": written("copy", "transpose"),
        "filled": written("broadcast"),
    }


def _end(parsed: program.Program, run: Run) -> program.Instruction:
    """An instruction; of a fusion the last in it that does more than rename its operand."""
    if run.line.opcode != "fusion":
        return run.line
    inside = {line.name: line for line in parsed[program.called(run.line, "calls")[0]]}
    line = next(line for line in inside.values() if line.root)
    while line.opcode == "bitcast":
        line = inside[line.operands[0]]
    return line


# ------------------------------------------------------------------------------------- programs


def step() -> Any:
    """The train step of `tiny`, 6 rows of 64 tokens, on one device."""
    work = from_size("tiny", "instruct", 64, 6, "float32", "none")
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    setup = make_setup(work.model, work.compute, work.optimizer, mesh, steps=1_000)
    batch = synthetic(work.model, work.rows, work.length)
    return compile_train_step(setup, setup.abstract, batch, 1, 1, 1).call


def decoding() -> Any:
    """Up to 32 tokens behind 6 prompts of 96, by the language model of `tiny`."""
    work = from_size("tiny", "instruct", 64, 6, "float32", "none")
    model = mllm.build(ModelConfig(language=work.model.language), work.compute)
    params, row = unstacked.shapes(model), jax.ShapeDtypeStruct((6, 96), jnp.int32)
    pixels = jax.ShapeDtypeStruct((6, 0, 1, 1, 3), jnp.uint8)
    inputs: Any = ModelInputs(*[row] * 4, pixels)  # type: ignore[arg-type]
    begun = jax.eval_shape(lambda p, i: programs.prefill(model, 128, p, i, None), params, inputs)
    request = jax.eval_shape(
        lambda: programs.Request(
            *(jnp.ones(6, bool), jnp.int32(32), jnp.zeros(2, jnp.int32), jnp.float32(1)),
            *(jax.random.key(0), jnp.zeros(6, jnp.int32)),
        )
    )
    return programs.decode.lower(model, False, 32, params, *begun, request).compile()


PROGRAMS: dict[str, Callable[[], Any]] = {"step": step, "decoding": decoding}


if __name__ == "__main__":
    print(f"# What tests/test_counts.py compares; explained in counts.py. JAX {jax.__version__}")
    print("# python -m tests.support.counts > tests/support/counts.yaml")
    print(yaml.safe_dump({name: of_program(make()) for name, make in PROGRAMS.items()}), end="")
