"""Runs `mllm-jax` as a shell would: a process for each command, started within milliseconds.

A server imports what the verbs import and touches no device; every command is a fork of it. So a
test can kill a hundred real runs, where an interpreter and its imports would cost seconds each.
`run` waits for a command, measures it (seconds, memory) and limits it, so that one that never ends
or takes all memory fails its test, not the machine. `start` leaves it running.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import xla

PRELOADED = (
    "mllm_jax.__main__",
    "mllm_jax.training.loop",
    "mllm_jax.conversion.conversions",
    "mllm_jax.evaluation.runner",
    "mllm_jax.generation.answer",
    "mllm_jax.commands.prepare.tables",
    "mllm_jax.commands.inspect.pages",
    "mllm_jax.commands.recipe.stages",
    "mllm_jax.commands.report.pages",
    "mllm_jax.commands.sweep.stages",
    "mllm_jax.commands.bench.turns",
    "mllm_jax.preflight.report",
)
ADDRESS_SPACE = 12 * 2**30  # bytes; far above what a test allows, far below what the machine has
ONE_DEVICE = {"XLA_FLAGS": xla.flags(1)}


class Outcome(NamedTuple):
    """How a command ended."""

    code: int | None  # None: killed, it did not end in time
    out: str
    err: str
    seconds: float
    peak: float  # MiB of memory, imports included


class _Command(NamedTuple):
    """What the fork needs."""

    words: Sequence[str]
    folder: Path
    out: Path
    err: Path
    environment: Mapping[str, str]
    address_space: int | None = None  # bytes
    peak: Any = None  # connection that takes the peak of memory


def start(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Any:
    """Starts `mllm-jax WORDS`; gives a multiprocessing.Process.

    Args:
        words: the command line without its first word.
        log: takes what is printed, behind what it holds.
        environment: variables that the command has besides those of the tests.
    """
    return _start(_Command(words, Path.cwd(), log, log, environment))


def run(
    words: Sequence[str], folder: Path, log: Path, limit: float, environment: Mapping[str, str] = {}
) -> Outcome:
    """`mllm-jax WORDS` in `folder` on one device; kills it after `limit` seconds.

    Args:
        words: the command line without its first word.
        folder: the working directory.
        log: prefix of the files that take what is printed.
        limit: in seconds.
        environment: variables that the command has besides those of the tests.
    """
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    for file in (out, err):
        file.unlink(missing_ok=True)
    receive, send = multiprocessing.Pipe(duplex=False)
    begin = time.perf_counter()
    environment = {**ONE_DEVICE, **environment}
    process = _start(_Command(words, folder, out, err, environment, ADDRESS_SPACE, send))
    send.close()
    process.join(limit)
    seconds = time.perf_counter() - begin
    if process.is_alive():
        process.kill()
        process.join()
    killed = process.exitcode is None or process.exitcode < 0
    peak = float("nan") if killed else receive.recv()
    printed, errors = (file.read_text(errors="backslashreplace") for file in (out, err))
    return Outcome(None if killed else process.exitcode, printed, errors, seconds, peak)


def _start(command: _Command) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    process = context.Process(target=_execute, args=(command,))
    process.start()
    return process


def _execute(command: _Command) -> None:
    os.environ.update(command.environment)
    os.chdir(command.folder)
    for number, file in ((1, command.out), (2, command.err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["mllm-jax", *command.words]
    if command.address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (command.address_space, command.address_space))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115

    from mllm_jax.__main__ import main

    try:
        code = main(command.words)  # multiprocessing prints what it raises, and exits as a script
    finally:
        if command.peak is not None:
            command.peak.send(_peak())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a run that ended may still be at work


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
