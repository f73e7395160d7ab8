"""The command line: verbs -> doors. A door is imported when its verb is called: `--help` is quick.

Exit codes: 0 done, 2 bad input, 1 a run that had to end or that the machine failed (a full disk, no
memory), 75 stopped by SIGTERM, 76 another process of the run was lost or all waited for too long,
130 interrupted (each with one line on stderr); 141 nobody reads the output; 1 also for a bug in
mllm-jax (with its traceback).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_jax.commands.flags import SEVERAL, TAKE_OVERRIDES, make_parser
from mllm_jax.common import failures, interrupts
from mllm_jax.common.errors import (
    INTERRUPTED,
    PREEMPTED,
    ConfigError,
    Interrupted,
    RunError,
    notes,
    require,
    say,
)
from mllm_jax.distributed import processes
from mllm_jax.distributed.cluster import Cluster, Patience, find
from mllm_jax.distributed.watchdog.heartbeat import INSIDE, Trainer
from mllm_jax.distributed.watchdog.run import watch

if TYPE_CHECKING:
    from mllm_jax.config.stage import Config


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code. Without `words`, as the process of a command line."""
    if words is not None:
        return _run(words)
    failures.open_standard()
    try:
        code = _run(sys.argv[1:])
    except SystemExit as ended:  # argparse, of --help and of wrong words
        code = int(ended.code or 0)
    interrupts.ignore()  # the work is done, or its end is said
    failure = failures.flush_standard()
    if failure is not None and failure.line is not None:
        say(failure.line)
    if code in (INTERRUPTED, PREEMPTED):
        os._exit(code)  # threads may still be at work, and the interpreter would wait for them
    return code or (failure.code if failure is not None else 0)


def _run(words: Sequence[str]) -> int:
    parser = make_parser()
    options, rest = parser.parse_known_args(words)
    if rest and options.verb not in TAKE_OVERRIDES:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    # transformers would say on every call that it found no PyTorch; only its tokenizers are used
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    trainer = None
    try:
        cluster = _cluster(options) if options.verb in SEVERAL else None
        if cluster is not None and INSIDE in os.environ:
            trainer = Trainer(int(os.environ[INSIDE]), cluster.patience.lost_after)
        with interrupts.watched(None if trainer is None else trainer.leave):
            if cluster is not None and trainer is None:
                return watch(cluster, [sys.executable, "-m", "mllm_jax", *words])
            if cluster is not None:
                processes.join(cluster)
            DOORS[options.verb](options)
    except (ConfigError, RunError) as error:
        return _ended(trainer, error.exit_code, "; ".join([str(error), *notes(error)]))
    except KeyboardInterrupt:
        return _ended(trainer, INTERRUPTED, str(Interrupted()))
    except failures.KINDS as error:
        failure = failures.described(error)
        if failure is None:
            raise
        return _ended(trainer, *failure)
    return 0


def _ended(trainer: Trainer | None, code: int, line: str | None) -> int:
    if trainer is not None:
        trainer.leave(code, line)  # the guards say it once
    if line is not None:
        say(line, code)
    return code


def _cluster(options: argparse.Namespace) -> Cluster | None:
    flags = (options.coordinator, options.processes, options.process)
    patience = Patience(options.lost_after, options.join_within, options.stuck_after)
    return find(*flags, os.environ, patience)


# -------------------------------------------------------------------------------------------- doors


def _quickstart(options: argparse.Namespace) -> None:
    from mllm_jax.commands.quickstart import stages as quickstart

    quickstart.run(options.out, share=options.share)


def _train(options: argparse.Namespace) -> None:
    config = _stage(options)

    from mllm_jax.training import loop

    require(
        bool(options.resume) or not options.accept_changed_data,
        "--accept-changed-data: has no effect without --resume",
    )
    accept = options.accept_changed_data
    loop.train(config, resume=options.resume, accept_changed_data=accept)


def _prepare(options: argparse.Namespace) -> None:
    workers = options.workers or os.cpu_count() or 1
    if options.config is None:
        words = options.overrides
        require(
            len(words) == 1 and not words[0].startswith("-"),
            "prepare: give a recipe file, or --config FILE for one stage (which takes overrides)",
        )

        from mllm_jax.commands.prepare import tables as prepare

        prepare.run_recipe(Path(words[0]), workers=workers, json_file=options.json_file)
        return
    config = _stage(options)

    from mllm_jax.commands.prepare import tables as prepare

    prepare.run(config, workers=workers, json_file=options.json_file)


def _inspect(options: argparse.Namespace) -> None:
    config = _stage(options)

    from mllm_jax.commands.inspect import pages as inspect_rows

    inspect_rows.run(config, options.out, step=options.step, rows=options.rows)


def _preflight(options: argparse.Namespace) -> None:
    config = _stage(options)

    from mllm_jax.preflight import report as preflight

    preflight.main(config, options.hardware, as_json=options.json)


def _recipe(options: argparse.Namespace) -> None:
    from mllm_jax.commands.recipe import stages as recipe

    recipe.run(options.file, out=options.out)


def _convert(options: argparse.Namespace) -> None:
    from mllm_jax.commands.convert import conversions

    o = options
    if o.way == "from-hf":
        conversions.from_hf(o.src, o.out)
    elif o.way == "join":
        conversions.join(o.out, vision=o.vision, language=o.language, connector=o.connector)
    else:
        conversions.to_hf(o.model, o.out, dtype=o.dtype)


def _generate(options: argparse.Namespace) -> None:
    from mllm_jax.generation import answer as generate

    generate.main(
        options.model,
        prompt=options.prompt,
        images=options.images,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        as_json=options.json,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import runner

    runner.evaluate(options.model, options.data, options.out, images=options.images)


def _bench(options: argparse.Namespace) -> None:
    if options.data:
        names = ("size", "stage", "length", "batch", "dtype", "remat")
        given = [f"--{name}" for name in names if getattr(options, name) is not None]
        require(not given, f"bench --data: {', '.join(given)}: no effect; give --config FILE")

        from mllm_jax.commands.bench import loader as bench_data

        bench_data.main(options.config, steps=options.steps, json_file=options.json_file)
        return

    from mllm_jax.commands.bench import step as bench

    names = ("config", "size", "stage", "length", "batch", "steps", "dtype", "remat", "json_file")
    bench.main(**{name: getattr(options, name) for name in names})


def _stage(options: argparse.Namespace) -> "Config":
    """The stage's file, read before its door is imported: what is wrong with it is said at once."""
    from mllm_jax.config import loading
    from mllm_jax.config.stage import Config

    return loading.load(Config, options.config, options.overrides)


DOORS = {
    "quickstart": _quickstart,
    "train": _train,
    "prepare": _prepare,
    "inspect": _inspect,
    "preflight": _preflight,
    "recipe": _recipe,
    "convert": _convert,
    "generate": _generate,
    "evaluate": _evaluate,
    "bench": _bench,
}


if __name__ == "__main__":
    sys.exit(main())
