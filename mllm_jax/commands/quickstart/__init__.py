"""`mllm-jax quickstart`: the whole recipe in minutes, on handwritten digits."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, number

USAGE = Usage("the whole recipe in minutes, on handwritten digits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/quickstart, or runs/quickstart_lrm"
    )
    parser.add_argument(
        "--share",
        type=number("(0, 1]"),
        default=1.0,
        metavar="X",
        help="share of the steps, to try it (0..1]",
    )
    parser.add_argument(
        "--lrm",
        action="store_true",
        help="instead: data and configs of LRM-LLaVA's ablation in three languages (docs/lrm.md)",
    )


def run(options: argparse.Namespace) -> None:
    if options.lrm:
        from mllm_jax.commands.quickstart.lrm import run as work
    else:
        from mllm_jax.commands.quickstart.stages import run as work

    home = Path("runs/quickstart_lrm" if options.lrm else "runs/quickstart")
    work(options.out or home, share=options.share)
