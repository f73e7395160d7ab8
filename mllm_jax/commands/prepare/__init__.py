"""`mllm-jax prepare`: fetches, checks and indexes what a stage or a recipe reads."""

import argparse
import os

from mllm_jax.commands.flags import (
    Usage,
    add_recipe_or_stage,
    load_stage,
    recipe_or_stage,
    whole,
)

USAGE = Usage(
    "fetch, read, check and index the data of a stage, or of all stages of a recipe; "
    "afterwards it runs offline",
    "(RECIPE [--only NAME ...] | --config FILE) [--section.key value ...] [--workers N] "
    "[--json FILE]",
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


def run(options: argparse.Namespace) -> None:
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
