"""`mllm-jax compare`: which of several models is better, and whether the difference is real."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

USAGE = Usage("which model is better on stored answers, task by task, and is it significant")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="results folders or answers.jsonl"
    )
    parser.add_argument(
        "--test",
        choices=("mcnemar", "bootstrap"),
        help="default: mcnemar where answers are right or wrong, else bootstrap",
    )
    parser.add_argument(
        "--common", action="store_true", help="leave out questions that not all have answered"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", dest="json_file", help="also write the table here"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import comparison_table

    comparison_table.compare_files(
        options.models, options.test, common=options.common, json_file=options.json_file
    )
