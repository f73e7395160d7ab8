"""`mllm-jax prepare`: fetches, checks and indexes what a stage or a recipe reads."""

import argparse
import os
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_only, load_stage, whole
from mllm_jax.common.errors import require

USAGE = Usage(
    "fetch, read, check and index the data of a stage, or of all stages of a recipe; "
    "afterwards it runs offline",
    "(RECIPE [--only NAME ...] | --config FILE) [--section.key value ...] [--workers N] "
    "[--json FILE]",
    overrides=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # RECIPE is not a positional of argparse: it would take the value of an override for one
    parser.add_argument("--config", type=Path, metavar="FILE", help="one stage, instead of RECIPE")
    add_only(parser)
    parser.add_argument(
        "--workers", type=whole("[1, 10_000]"), metavar="N", help="processes; default: all cores"
    )
    parser.add_argument(
        "--json", metavar="FILE", dest="json_file", help="also write the report here"
    )


def run(options: argparse.Namespace) -> None:
    workers = options.workers or os.cpu_count() or 1
    if options.config is None:
        arguments = options.overrides
        require(
            len(arguments) > 0 and not arguments[0].startswith("-"),
            "prepare: give a recipe file, before all overrides, or --config FILE for one stage",
        )

        from mllm_jax.commands.prepare import tables

        tables.run_recipe(
            Path(arguments[0]),
            workers=workers,
            json_file=options.json_file,
            overrides=arguments[1:],
            only=options.only,
        )
        return
    require(not options.only, "prepare: --only names stages of a recipe, not of --config")
    config = load_stage(options)

    from mllm_jax.commands.prepare import tables

    tables.run(config, workers=workers, json_file=options.json_file)
