"""`mllm-jax sweep`: a recipe run many times with other settings, and how the runs compare."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

USAGE = Usage("a recipe with many settings: what runs share is trained once; table and figures")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the file's own `out`")
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="RUN",
        help="these runs and the stages that they need, nothing else",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the runs, what they share and a command for each, and do nothing",
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.commands.sweep import stages

    stages.run(options.file, options.out, options.only, options.dry_run)
