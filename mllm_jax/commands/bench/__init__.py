"""`mllm-jax bench`: times the real training step on synthetic rows, or a stage's loader."""

import argparse

from mllm_jax.commands.flags import Usage, whole
from mllm_jax.common.errors import require

USAGE = Usage("throughput of the real step on synthetic rows, or of a stage's loader")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", action="store_true", help="the loader alone; needs --config")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE")
    what.add_argument("--size", choices=("tiny", "small", "1b", "8b"))
    parser.add_argument("--stage", choices=("align", "instruct", "full"), help="default: instruct")
    parser.add_argument(
        "--length", type=whole("[2, 16_777_216]"), metavar="N", help="tokens in a row"
    )
    parser.add_argument("--batch", type=whole("[1, 1_000_000]"), metavar="N", help="rows")
    parser.add_argument("--steps", type=whole("[1, 1_000_000]"), default=5, metavar="N")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", choices=("none", "dots", "full"), metavar="NAME")
    parser.add_argument(
        "--json", metavar="FILE", dest="json_file", help="also write the numbers here"
    )


def run(options: argparse.Namespace) -> None:
    if options.data:
        names = ("size", "stage", "length", "batch", "dtype", "remat")
        unused = [f"--{name}" for name in names if getattr(options, name) is not None]
        require(not unused, f"bench --data: {', '.join(unused)}: no effect; give --config FILE")

        from mllm_jax.commands.bench import loader

        loader.main(options.config, steps=options.steps, json_file=options.json_file)
        return

    from mllm_jax.commands.bench import step

    names = ("config", "size", "stage", "length", "batch", "steps", "dtype", "remat", "json_file")
    step.main(**{name: getattr(options, name) for name in names})
