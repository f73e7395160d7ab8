"""Traces some steps with JAX's profiler, and reads which operations took the time.

The folder opens in XProf (`xprof DIR`, or TensorBoard's profile plugin) and its
`perfetto_trace.json.gz` in https://ui.perfetto.dev. Events carry the names of the program's
instructions, which know the code that they come from.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData, ProfileOptions

from mllm_jax.common.errors import RunError
from mllm_jax.common.markdown import markdown_table
from mllm_jax.preflight import program

STEPS = 3  # that are traced
STEP = "train"  # what XProf and Perfetto call one; the name that XProf's documentation uses
COUNT = 10  # operations of the table
CONTAINERS = ("while", "call", "conditional")  # their time is that of what they run
WIDTH = 60  # characters of the code's place in the table


class Cost(NamedTuple):
    """What one instruction of the program takes in a step, all threads or streams together."""

    operation: str  # its name in the program, or that of a kernel
    opcode: str
    source: str  # the code that it comes from
    calls: float  # in a step
    seconds: float  # in a step
    share: float  # of all operations' seconds


@contextmanager
def tracing(folder: Path) -> Iterator[None]:
    """Writes what runs in the block as a trace into the folder."""
    options = ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would be most of the file
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        yield


def costliest(folder: Path, text: str, count: int = COUNT) -> list[Cost]:
    """The operations that took most of the traced steps.

    Args:
        folder: of the trace of STEPS steps of this program alone.
        text: the compiled program.
        count: how many.

    Raises:
        RunError: the trace has no operation of the program.
    """
    computations, _ = program.parse(text)
    lines = {line.name: line for lines in computations.values() for line in lines}
    seconds, calls = defaultdict(float), defaultdict(int)
    for name, nanoseconds in _events(folder, lines):
        if name not in lines or lines[name].opcode not in CONTAINERS:
            seconds[name] += nanoseconds / 1e9
            calls[name] += 1
    total = sum(seconds.values())
    if not total:
        raise RunError(f"{folder}: the profiler recorded no operation of the step")
    costs = []
    for name in sorted(seconds, key=lambda name: -seconds[name])[:count]:
        line = lines.get(name)
        opcode, source = (line.opcode, place(program.op_name(line))) if line else ("kernel", "")
        each = (calls[name] / STEPS, seconds[name] / STEPS, round(seconds[name] / total, 4))
        costs.append(Cost(name, opcode, source, *each))
    return costs


def table(costs: Sequence[dict[str, Any]]) -> str:
    """The costs as a table for a terminal."""
    rows = [
        (
            cost["operation"],
            cost["source"][-WIDTH:] or cost["opcode"],
            f"{cost['calls']:g}",
            f"{1e3 * cost['seconds']:.3f}",
            f"{cost['share']:.1%}",
        )
        for cost in costs
    ]
    return markdown_table(("operation", "from", "calls", "ms a step", "share"), rows)


def place(op_name: str) -> str:
    """The part of an operation's name that says where in the model it is: without jit and loops."""
    plain = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation")
    parts = [part for part in op_name.split("/") if part not in plain]
    return "/".join(part for part in parts if not part.startswith("jit("))


def _events(folder: Path, known: Any) -> Iterator[tuple[str, float]]:
    """(instruction or kernel, nanoseconds) of everything that ran on the devices.

    On GPUs and TPUs the planes of devices hold it, line by line: the operations, or what ran on
    each stream. On CPUs the threads of the host's plane do, among other events.
    """
    (file,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith(("/device:GPU", "/device:TPU"))]
    for plane in devices or [plane for plane in planes if plane.name.startswith("/host:CPU")]:
        lines = list(plane.lines)
        if devices:
            exact = [line for line in lines if line.name == "XLA Ops"]
            lines = exact or [line for line in lines if line.name.startswith("Stream")]
        for line in lines:
            for event in line.events:
                name = _instruction(event)
                if devices or name in known:
                    yield name, event.duration_ns


def _instruction(event: Any) -> str:
    """An event's instruction, as the program names it."""
    stats = dict(event.stats)
    return str(stats.get("hlo_op") or event.name.split(" ")[0].removeprefix("%"))
