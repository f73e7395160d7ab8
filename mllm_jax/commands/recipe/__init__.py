"""`mllm-jax recipe`: trains the stages of a recipe, then evaluates and exports."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_cluster, add_only, recipe_file

USAGE = Usage(
    "stages in order or as a tree, then evaluation, export and report",
    "FILE [--out DIR] [--only NAME ...] [--section.key value ...] [--STAGE.section.key value ...] "
    "[--coordinator HOST:PORT --processes N --process I]",
    overrides=True,
    several=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # FILE is not a positional of argparse: it would take the value of an override for one
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the file's own `out`")
    add_only(parser)
    add_cluster(parser)


def run(options: argparse.Namespace) -> None:
    path, overrides = recipe_file(
        options, "recipe: give FILE, the recipe file, before all overrides"
    )

    from mllm_jax.commands.recipe import stages

    stages.run(path, out=options.out, overrides=overrides, only=options.only)
