"""Runs commands as a shell would, each in a process of its own that starts within milliseconds.

A server imports what the verbs import and touches no device; every command is a fork of it. What a
command costs (seconds, memory) is measured in the fork and limited, so that one that never ends or
takes all memory fails its test, not the machine.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PRELOADED = (
    "mllm_jax.__main__",
    "mllm_jax.train",
    "mllm_jax.convert",
    "mllm_jax.evaluate",
    "mllm_jax.generate",
    "mllm_jax.prepare",
    "mllm_jax.inspect_rows",
    "mllm_jax.recipe",
    "mllm_jax.bench",
    "mllm_jax.preflight",
)
ADDRESS_SPACE = 12 * 2**30  # bytes; far above what a test allows, far below what the machine has


class Outcome(NamedTuple):
    """How a command ended."""

    code: int | None  # None: killed, it did not end in time
    out: str
    err: str
    seconds: float
    peak: float  # MiB of memory, imports included


def run(
    words: Sequence[str], folder: Path, log: Path, limit: float, environment: Mapping[str, str] = {}
) -> Outcome:
    """`mllm-jax WORDS` in `folder`; kills it after `limit` seconds.

    Args:
        words: the command line without its first word.
        folder: the working directory.
        log: prefix of the files that take what is printed.
        limit: in seconds.
        environment: variables that the command has besides those of the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    receive, send = context.Pipe(duplex=False)
    start = time.perf_counter()
    process: Any = context.Process(
        target=_command, args=(list(words), folder, log, dict(environment), send)
    )
    process.start()
    send.close()
    process.join(limit)
    seconds = time.perf_counter() - start
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    killed = process.exitcode is None or process.exitcode < 0
    peak = float("nan") if killed else receive.recv()
    out, err = (
        log.with_suffix(end).read_text(errors="backslashreplace") for end in (".out", ".err")
    )
    return Outcome(None if killed else process.exitcode, out, err, seconds, peak)


def _command(
    words: list[str], folder: Path, log: Path, environment: dict[str, str], send: Any
) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    os.environ.update(environment)
    os.chdir(folder)
    for number, end in ((1, ".out"), (2, ".err")):
        file = os.open(log.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.argv = ["mllm-jax", *words]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    out = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    err = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.stdout, sys.stderr = out, err

    from mllm_jax.__main__ import main

    code: Any = 1
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    finally:
        if sys.exc_info()[0] not in (None, SystemExit):
            import traceback

            traceback.print_exc()
        out.flush()
        err.flush()
        send.send(_peak())
        os._exit(code if isinstance(code, int) else 0)


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
