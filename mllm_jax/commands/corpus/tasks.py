"""`mllm-jax corpus tasks`: MVQA, EP-VQA and BVQA records from aligned ones, as LRM-LLaVA's."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import QUESTION_FORMATS, number

SUMMARY = "LRM-LLaVA's three tasks from records that are aligned between languages"
TASKS = ("mvqa", "ep", "bvqa")  # corpus.tasks.build.TASKS, which loads slowly
PAIRED = "pairs"  # corpus.tasks.build.PAIRED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        nargs="?",
        metavar="ALIGNED",
        help="JSON or JSONL: {id, image, q: {language: text}, a: {language: text}}",
    )
    parser.add_argument(
        "--parallel",
        nargs="+",
        default=(),
        metavar="LANGUAGE=FILE",
        help="instead: LLaVA JSON or JSONL of each language, paired by id",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a file per task and language"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=(*TASKS, PAIRED),
        default=TASKS,
        metavar="TASK",
        help="of mvqa ep bvqa, the default, and pairs, for optimizer.pairs",
    )
    parser.add_argument(
        "--languages", nargs="+", default=(), metavar="CODE", help="default: all in the data"
    )
    parser.add_argument(
        "--instructions",
        default="en",
        metavar="CODE",
        help="language of instructions; `question`: that of the question; default: en",
    )
    parser.add_argument(
        "--wordings",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="YAML files with instructions of your own, one per language (docs/lrm.md)",
    )
    parser.add_argument(
        "--ignore", nargs="+", default=(), metavar="KEY", help="keys of records that are not read"
    )
    parser.add_argument(
        "--ratio",
        type=number("(0, 1_000]"),
        default=1.0,
        metavar="R",
        help="other languages together, as a multiple of English (streams.yaml); default: 1",
    )
    parser.add_argument(
        "--without",
        nargs="+",
        choices=(*TASKS, PAIRED),
        default=(),
        metavar="TASK",
        help="tasks that streams.yaml leaves out, in the languages other than English",
    )
    parser.add_argument(
        "--refill", action="store_true", help="the other tasks take their share; default: fewer"
    )
    parser.add_argument("--images", metavar="DIR", help="of the images, for streams.yaml")
    parser.add_argument(
        "--format", choices=QUESTION_FORMATS, default="llama31", help="for streams.yaml"
    )
    parser.add_argument("--json", action="store_true", help="the counts as JSON, not as a table")


def run(options: argparse.Namespace) -> None:
    from mllm_jax.corpus.tasks import files
    from mllm_jax.corpus.tasks.sources import open_aligned

    source, name = open_aligned(options.data, options.parallel)
    question = options.instructions == "question"
    files.run(
        source,
        name,
        options.out,
        files.Options(
            tasks=list(dict.fromkeys(options.tasks)),
            languages=options.languages,
            instructions=None if question else options.instructions,
            wordings=options.wordings,
            ignore=frozenset(options.ignore),
            ratio=options.ratio,
            without=frozenset(options.without),
            refill=options.refill,
            images=options.images,
            format=options.format,
        ),
        as_json=options.json,
    )
