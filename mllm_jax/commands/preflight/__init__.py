"""`mllm-jax preflight`: whether a stage, or each of a recipe's, fits on hardware not here."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_only, load_stage
from mllm_jax.common.errors import require

USAGE = Usage(
    "does a stage, or do all of a recipe, fit on hardware that is not here, how fast may it be",
    "(RECIPE [--only NAME ...] | --config FILE) --hardware CHIPS [--json] "
    "[--section.key value ...]",
    overrides=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # RECIPE is not a positional of argparse: it would take the value of an override for one
    parser.add_argument("--config", type=Path, metavar="FILE", help="one stage, instead of RECIPE")
    add_only(parser)
    chips = "for example v5e:16x16, v5p:4x4x4, v6e:8x8, h200:8, cpu:8"
    parser.add_argument("--hardware", required=True, metavar="CHIPS", help=chips)
    parser.add_argument("--json", action="store_true", help="objects instead of the table")


def run(options: argparse.Namespace) -> None:
    if options.config is None:
        arguments = options.overrides
        require(
            len(arguments) > 0 and not arguments[0].startswith("-"),
            "preflight: give a recipe file, before all overrides, or --config FILE for one stage",
        )

        from mllm_jax.commands.preflight import recipe_table

        path, overrides = Path(arguments[0]), arguments[1:]
        recipe_table.main(path, overrides, options.only, options.hardware, options.json)
        return
    require(not options.only, "preflight: --only names stages of a recipe, not of --config")
    config = load_stage(options)

    from mllm_jax.preflight import report

    report.main(config, options.hardware, as_json=options.json)
