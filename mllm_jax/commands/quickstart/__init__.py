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
    from mllm_jax.commands.quickstart import lrm, stages

    work = lrm if options.lrm else stages
    work.run(options.out or work.HOME, share=options.share)
