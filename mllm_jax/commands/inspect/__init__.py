"""`mllm-jax inspect`: any step's rows as the model gets them, as an HTML page."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_stage, load_stage, whole

USAGE = Usage(
    "a page with the rows of any step as the model gets them, and the mixture",
    "--config FILE [--step N] [--rows K] --out DIR [--section.key value ...]",
    overrides=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_stage(parser)
    parser.add_argument(
        "--step",
        type=whole("[0, 1_000_000_000]"),
        default=0,
        metavar="N",
        help="counted from 0; default: 0",
    )
    parser.add_argument(
        "--rows",
        type=whole("[1, 1_000_000]"),
        default=4,
        metavar="K",
        help="number of rows on the page; default: 4",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets index.html")


def run(options: argparse.Namespace) -> None:
    config = load_stage(options)

    from mllm_jax.commands.inspect import pages

    pages.run(config, options.out, step=options.step, rows=options.rows)
