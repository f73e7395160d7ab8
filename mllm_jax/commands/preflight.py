"""`mllm-jax preflight`: whether a stage fits on hardware that is not here, and how fast."""

import argparse

from mllm_jax.commands.flags import Usage, add_stage, load_stage

USAGE = Usage(
    "does a stage fit on hardware that is not here, how fast may it be, what would fit",
    "--config FILE --hardware CHIPS [--json] [--section.key value ...]",
    overrides=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_stage(parser)
    chips = "for example v5e:16x16, v5p:4x4x4, v6e:8x8, h200:8, cpu:8"
    parser.add_argument("--hardware", required=True, metavar="CHIPS", help=chips)
    parser.add_argument("--json", action="store_true", help="one object instead of the table")


def run(options: argparse.Namespace) -> None:
    config = load_stage(options)

    from mllm_jax.preflight import report

    report.main(config, options.hardware, as_json=options.json)
