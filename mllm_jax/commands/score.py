"""`mllm-jax score`: recomputes a task's numbers from stored answers, without a model."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_extras

USAGE = Usage("a benchmark's numbers from stored answers, ours or published ones; no model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="name of a task, or a task file")
    parser.add_argument(
        "--answers", type=Path, required=True, metavar="FILE", help="answers.jsonl, or as published"
    )
    parser.add_argument(
        "--truth",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="where the answers do not hold it; several references or categories",
    )
    parser.add_argument("--language", metavar="xx", help="of the answers, or one of theirs")
    add_extras(parser)
    parser.add_argument(
        "--without-images",
        type=Path,
        metavar="FILE",
        help="with --fidelity: answers to the same questions without their images, of `evaluate`",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", dest="json_file", help="also write the numbers here"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import scoring

    scoring.score_file(
        options.task,
        options.answers,
        options.truth,
        language=options.language,
        fidelity=options.fidelity,
        identifier=options.identifier,
        chrf=options.chrf,
        without_images=options.without_images,
        json_file=options.json_file,
    )
