"""`mllm-jax corpus`: makes, checks and changes training data before anything is trained."""

import argparse

from mllm_jax.commands.corpus import decontamination, tasks
from mllm_jax.commands.flags import Usage

USAGE = Usage("decontaminate: find evaluation data in training data; tasks: make LRM-LLaVA's tasks")
STEPS = {"decontaminate": decontamination, "tasks": tasks}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, step in STEPS.items():
        one = steps.add_parser(
            name, help=step.SUMMARY, description=step.SUMMARY, allow_abbrev=False
        )
        step.add_arguments(one)


def run(options: argparse.Namespace) -> None:
    STEPS[options.step].run(options)
