"""`mllm-jax prepare`: fetches, checks and indexes what a stage, a recipe or a task reads."""

import argparse
import os
from pathlib import Path

from mllm_jax.commands.flags import (
    Usage,
    add_recipe_or_stage,
    load_stage,
    recipe_or_stage,
    whole,
)
from mllm_jax.common.errors import ConfigError, quoted, require

USAGE = Usage(
    "fetch, read, check and index the data of a stage, of all stages of a recipe, or of the tasks "
    "of an evaluation; afterwards it runs offline",
    "(RECIPE [--only NAME ...] | --config FILE) [--section.key value ...] [--workers N] "
    "[--json FILE]\n"
    "       mllm-jax prepare --task TASK ... [--language xx ...] [--revision HUB=COMMIT ...] "
    "[--folder DIR] [--json FILE]",
    overrides=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_or_stage(parser)
    parser.add_argument(
        "--workers", type=whole("[1, 10_000]"), metavar="N", help="processes; default: all cores"
    )
    parser.add_argument(
        "--json", metavar="FILE", dest="json_file", help="also write the report here"
    )
    tasks = parser.add_argument_group("data of an evaluation's tasks, instead of a stage's")
    for flag, name, text in (
        ("--task", "TASK", "names of tasks, or task files (docs/evaluation.md)"),
        ("--language", "xx", "languages of these tasks; default: all that have data"),
        ("--revision", "HUB=COMMIT", "commits of data sets that the task file does not pin"),
    ):
        tasks.add_argument(flag, nargs="+", action="extend", default=[], metavar=name, help=text)
    tasks.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the data go; default: data/tasks"
    )


def run(options: argparse.Namespace) -> None:
    if options.task:
        _run_tasks(options)
        return
    for name in ("language", "revision", "folder"):
        require(not getattr(options, name), f"prepare: --{name} belongs to --task")
    workers = options.workers or os.cpu_count() or 1
    if (recipe := recipe_or_stage(options, "prepare")) is not None:
        from mllm_jax.commands.prepare import tables

        path, overrides = recipe
        tables.run_recipe(
            path,
            workers=workers,
            json_file=options.json_file,
            overrides=overrides,
            only=options.only,
        )
        return
    config = load_stage(options)

    from mllm_jax.commands.prepare import tables

    tables.run(config, workers=workers, json_file=options.json_file)


def _run_tasks(options: argparse.Namespace) -> None:
    others = [*options.overrides, *options.only, *([options.config] if options.config else [])]
    if others:
        raise ConfigError(f"prepare --task: {quoted(str(others[0]))} belongs to a stage or recipe")

    from mllm_jax.commands.prepare import task_data

    task_data.run(
        options.task,
        options.language,
        options.revision,
        folder=options.folder,
        json_file=options.json_file,
    )
