"""`mllm-jax train`: trains one stage."""

import argparse

from mllm_jax.commands.flags import Usage, add_cluster, add_stage, load_stage
from mllm_jax.common.errors import require

USAGE = Usage(
    "one stage, from a YAML file",
    "--config FILE [--resume [auto]] [--accept-changed-data] "
    "[--coordinator HOST:PORT --processes N --process I] [--section.key value ...]",
    overrides=True,
    several=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_stage(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=("auto",),
        metavar="auto",
        help="continue from the run's last checkpoint; auto: if a run has begun in the out folder",
    )
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: continue even if the streams' records changed since the run began",
    )
    add_cluster(parser)


def run(options: argparse.Namespace) -> None:
    config = load_stage(options)

    from mllm_jax.generation.samples import sampler
    from mllm_jax.training import loop

    require(
        bool(options.resume) or not options.accept_changed_data,
        "--accept-changed-data: has no effect without --resume",
    )
    accept = options.accept_changed_data
    loop.train(config, resume=options.resume, accept_changed_data=accept, sampler=sampler)
