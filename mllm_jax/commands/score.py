"""`mllm-jax score`: recomputes a task's numbers from stored answers, without a model."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage

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
    parser.add_argument(
        "--fidelity",
        nargs="+",
        default=[],
        metavar="xx",
        help="also whether answers are in their question's language; those to tell apart: eu en",
    )
    parser.add_argument(
        "--identifier",
        type=Path,
        metavar="FILE",
        help="with --fidelity: a fastText model such as GlotLID's, in the place of py3langid",
    )
    parser.add_argument(
        "--chrf",
        action="store_true",
        help="also chrF2, chrF++ and BLEU against the true answers, by sacrebleu",
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
        json_file=options.json_file,
    )
