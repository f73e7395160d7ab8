"""`mllm-jax evaluate`: answers and losses on held-out data, per language."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

USAGE = Usage("answers and losses on held-out data, per language")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a model, run or Hugging Face folder"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="LLaVA JSON or JSONL"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="answers.jsonl, scores.json, scores.md"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="where image paths start")


def run(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import runner

    runner.evaluate(options.model, options.data, options.out, images=options.images)
