"""`mllm-jax report`: an HTML page about a run, or about a recipe's or the quickstart's folder."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

USAGE = Usage("a page about a run or a recipe: losses, shares, scores, answers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="of a run, a recipe or the quickstart"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page; default: DIR/report.html"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.commands.report import pages

    pages.run(options.folder, out=options.out)
