"""The command line: finds the verb, runs it, and turns every error into one line and an exit code.

Exit codes: 0 done, 2 bad input, 1 a run that was aborted or that the machine failed (a full disk,
no memory), 75 stopped by SIGTERM, 76 another process of the run was lost or all waited for too
long, 130 interrupted (each with one line on stderr); 141 nobody reads the output; 1 also for a bug
in mllm-jax (with its traceback).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from mllm_jax import __version__
from mllm_jax.commands import (
    arena,
    bench,
    compare,
    completion,
    convert,
    corpus,
    evaluate,
    gap,
    generate,
    inspect,
    new,
    preflight,
    prepare,
    quickstart,
    recipe,
    report,
    score,
    sweep,
    train,
)
from mllm_jax.commands.flags import Parser, Usage
from mllm_jax.common import failures, host_memory, interrupts
from mllm_jax.common.errors import (
    INTERRUPTED,
    PREEMPTED,
    ConfigError,
    Interrupted,
    RunError,
    closest,
    notes,
    quoted,
    say,
)
from mllm_jax.distributed import processes
from mllm_jax.distributed.cluster import Cluster, Timeouts, find
from mllm_jax.distributed.watchdog.heartbeat import INSIDE, Heartbeat
from mllm_jax.distributed.watchdog.run import watch

# in the order of `mllm-jax --help`: that of a first project
VERBS: dict[str, ModuleType] = {
    "quickstart": quickstart,
    "new": new,
    "prepare": prepare,
    "corpus": corpus,
    "inspect": inspect,
    "preflight": preflight,
    "train": train,
    "recipe": recipe,
    "sweep": sweep,
    "report": report,
    "convert": convert,
    "generate": generate,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "arena": arena,
    "gap": gap,
    "bench": bench,
    "completion": completion,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code. Without `arguments`, those of the process."""
    if arguments is not None:
        return _run(arguments)
    failures.open_standard()
    failure = None
    try:
        code = _run(sys.argv[1:])
    except SystemExit as ended:  # argparse, of --help and of wrong usage
        code = int(ended.code or 0)
    except OSError as error:  # --help could not be printed; a verb's own errors end in `_run`
        code, failure = 0, failures.standard_failed(error)
    interrupts.ignore()  # the work is done, or its error is printed
    failure = failure or failures.flush_standard()
    if failure is not None and failure.line is not None:
        say(failure.line)
    if code in (INTERRUPTED, PREEMPTED):
        os._exit(code)  # threads may still be at work, and the interpreter would wait for them
    return code or (failure.code if failure is not None else 0)


def _run(arguments: Sequence[str]) -> int:
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not VERBS[options.verb].USAGE.overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides, options.parser = rest, parser
    # transformers would warn on every call that PyTorch is missing; only its tokenizers are used
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    host_memory.keep_freed()
    heartbeat = None
    try:
        cluster = _cluster(options) if VERBS[options.verb].USAGE.several else None
        if cluster is not None and INSIDE in os.environ:
            heartbeat = Heartbeat(int(os.environ[INSIDE]), cluster.timeouts.lost_after)
        with interrupts.watched(None if heartbeat is None else heartbeat.leave):
            if cluster is not None and heartbeat is None:
                return watch(cluster, [sys.executable, "-m", "mllm_jax", *arguments])
            if cluster is not None:
                processes.join(cluster)
            VERBS[options.verb].run(options)
            if heartbeat is not None:
                heartbeat.finish()
    except (ConfigError, RunError) as error:
        return _ended(heartbeat, error.exit_code, "; ".join([str(error), *notes(error)]))
    except KeyboardInterrupt:
        return _ended(heartbeat, INTERRUPTED, str(Interrupted()))
    except failures.KINDS as error:
        failure = failures.described(error)
        if failure is None:
            raise
        return _ended(heartbeat, *failure)
    return 0


def _ended(heartbeat: Heartbeat | None, code: int, line: str | None) -> int:
    if heartbeat is not None:
        heartbeat.leave(code, line)  # the watchdogs print it once
    if line is not None:
        say(line, code)
    return code


def _cluster(options: argparse.Namespace) -> Cluster | None:
    flags = (options.coordinator, options.processes, options.process)
    timeouts = Timeouts(options.lost_after, options.join_within, options.stuck_after)
    return find(*flags, os.environ, timeouts)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `verb` in its result is the name of one."""
    parser = _VerbParser(
        prog="mllm-jax",
        description="Train multimodal large language models for low-resource languages, in JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mllm-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, command in VERBS.items():
        usage: Usage = command.USAGE
        written = None if usage.arguments is None else f"mllm-jax {name} {usage.arguments}"
        verb = verbs.add_parser(
            name,
            help=usage.summary,
            description=usage.summary,
            usage=written,
            allow_abbrev=False,
        )
        verb.overrides = usage.overrides
        command.add_arguments(verb)
    return parser


class _VerbParser(Parser):
    """Names the nearest verb when one is misspelt."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.dest == "verb" and value not in VERBS:
            near = closest(value, VERBS)
            hint = f"; did you mean {near}?" if near else ""
            raise argparse.ArgumentError(
                None, f"{quoted(value)} is not a verb{hint}; verbs: {', '.join(VERBS)}"
            )
        super()._check_value(action, value)
