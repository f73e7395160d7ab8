"""`mllm-jax arena`: ratings of models from people's preferences between their answers."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

USAGE = Usage("Bradley-Terry ratings from preference files, beside benchmarks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="JSONL, JSON, CSV or Parquet of model_a, model_b, winner",
    )
    parser.add_argument(
        "--benchmarks",
        type=Path,
        metavar="FILE",
        help='JSON {"benchmark": {"model": number}}: each is correlated with the ratings',
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", dest="json_file", help="also write the ratings here"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import preferences

    preferences.rate_files(options.files, options.benchmarks, options.json_file)
