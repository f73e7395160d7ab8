"""`mllm-jax preflight`: whether a stage, or each of a recipe's, fits on hardware not here."""

import argparse

from mllm_jax.commands.flags import Usage, add_recipe_or_stage, load_stage, recipe_or_stage

USAGE = Usage(
    "does a stage, or do all of a recipe, fit on hardware that is not here, how fast may it be",
    "(RECIPE [--only NAME ...] | --config FILE) --hardware CHIPS [--json] "
    "[--section.key value ...]",
    overrides=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_or_stage(parser)
    chips = "for example v5e:16x16, v5p:4x4x4, v6e:8x8, h200:8, cpu:8"
    parser.add_argument("--hardware", required=True, metavar="CHIPS", help=chips)
    parser.add_argument("--json", action="store_true", help="objects instead of the table")


def run(options: argparse.Namespace) -> None:
    if (recipe := recipe_or_stage(options, "preflight")) is not None:
        from mllm_jax.commands.preflight import recipe_table

        recipe_table.main(*recipe, options.only, options.hardware, options.json)
        return
    config = load_stage(options)

    from mllm_jax.preflight import report

    report.main(config, options.hardware, as_json=options.json)
