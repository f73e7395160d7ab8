"""`mllm-jax evaluate`: answers of a model to the questions of tasks, and what they are worth."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_cluster, add_devices, add_extras, whole

USAGE = Usage("benchmarks, or answers and losses on held-out data, per language", several=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a model, run or Hugging Face folder"
    )
    parser.add_argument(
        "--task",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        dest="tasks",
        help="names of tasks, or task files; default: free, which needs --data",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="rows of the one task; without --task LLaVA JSON or JSONL",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="where image paths start")
    parser.add_argument(
        "--language",
        nargs="+",
        action="extend",
        default=[],
        metavar="xx",
        dest="languages",
        help="these alone; default: all that a task has",
    )
    parser.add_argument(
        "--limit",
        type=whole("[1, 1_000_000_000]"),
        metavar="N",
        help="the first questions of each task and language",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="results folder; default: inside a run folder"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted evaluation, if one has begun"
    )
    parser.add_argument(
        "--rows",
        type=whole("[1, 65_536]"),
        default=32,
        metavar="N",
        help="texts read at the same time",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="of prepared task data; default: data/tasks"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="answers of before, used again; default: RUN/evaluated of a run folder",
    )
    parser.add_argument(
        "--again", action="store_true", help="ask even what has been measured before"
    )
    add_extras(parser)
    parser.add_argument(
        "--devices",
        type=whole("[1, 65_536]"),
        metavar="N",
        help="of each process, which share the batches; default: all",
    )
    add_devices(parser)
    add_cluster(parser)


def run(options: argparse.Namespace) -> None:
    from mllm_jax.evaluation import request
    from mllm_jax.generation.devices import Devices

    request.run_tasks(
        options.model,
        options.tasks,
        options.out,
        data=options.data,
        images=options.images,
        languages=options.languages,
        limit=options.limit,
        folder=options.folder,
        rows=options.rows,
        resume=options.resume,
        cache=options.cache,
        again=options.again,
        fidelity=options.fidelity,
        identifier=options.identifier,
        chrf=options.chrf,
        devices=Devices(options.devices, options.fsdp, options.tensor),
    )
