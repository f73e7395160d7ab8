"""`mllm-jax quickstart`: the whole recipe in minutes, on handwritten digits."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, number

USAGE = Usage("the whole recipe in minutes, on handwritten digits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR")
    parser.add_argument(
        "--share",
        type=number("(0, 1]"),
        default=1.0,
        metavar="X",
        help="share of the steps, to try it (0..1]",
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.commands.quickstart import stages

    stages.run(options.out, share=options.share)
