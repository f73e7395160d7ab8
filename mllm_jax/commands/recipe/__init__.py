"""`mllm-jax recipe`: trains the stages of a recipe in order, then evaluates and exports."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_cluster

USAGE = Usage("stages in order, then evaluation and export", several=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the file's own `out`")
    add_cluster(parser)


def run(options: argparse.Namespace) -> None:
    from mllm_jax.commands.recipe import stages

    stages.run(options.file, out=options.out)
