"""`mllm-jax gap`: how far image vectors are from text vectors, language by language."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

USAGE = Usage("image vectors against text vectors per language, with a figure")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a model, run or Hugging Face folder"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="LLaVA JSON or JSONL with images"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="gap.json, gap.md, gap.html")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where image paths start")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", dest="json_file", help="also write the numbers here"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import gap

    gap.measure(options.model, options.data, options.out, options.images, options.json_file)
