"""`mllm-jax corpus decontaminate`: which training records hold evaluation pictures or texts."""

import argparse
import os
from pathlib import Path

from mllm_jax.commands.flags import whole

SUMMARY = "find pictures (resized, encoded again, cropped) and texts of evaluation sets in data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="JSON, JSONL, or a file or folder of Parquet, Arrow, WebDataset, ArrayRecord, text",
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="evaluation sets, stored in any of these ways; columns may have any names",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="where DATA's image paths start")
    parser.add_argument(
        "--against-images", type=Path, metavar="DIR", help="where those of --against start"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="report.html, pairs.jsonl, leave_out.json"
    )
    parser.add_argument(
        "--clean", type=Path, metavar="FILE", help="the data without them (JSON and JSONL)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="of picture hashes; default: beside each file"
    )
    parser.add_argument(
        "--words",
        type=whole("[5, 100]"),
        default=13,
        metavar="N",
        help="in a row that two texts must share; default: 13",
    )
    parser.add_argument(
        "--workers", type=whole("[1, 10_000]"), metavar="N", help="processes; default: all cores"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.corpus import decontamination_files

    decontamination_files.run(
        options.data,
        options.against,
        images=options.images,
        task_images=options.against_images,
        out=options.out,
        clean=options.clean,
        cache=options.cache,
        words=options.words,
        workers=options.workers or os.cpu_count() or 1,
    )
