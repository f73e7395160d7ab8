"""`mllm-jax bench`: times the real training step on synthetic rows, or a stage's loader."""

import argparse
import dataclasses

from mllm_jax.commands.bench.request import RANKS, ROUNDS, STEPS, Request
from mllm_jax.commands.flags import Usage, names, several, whole
from mllm_jax.common.errors import require

USAGE = Usage(
    "throughput of the real step on synthetic rows, or of a stage's loader",
    "(--config FILE | --size NAME) [--data] [options] [--section.key value ...]",
    overrides=True,
)
OF_LOADER = ("config", "steps", "json_file", "overrides")  # the flags that --data takes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", action="store_true", help="the loader alone; needs --config")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE")
    what.add_argument("--size", choices=("tiny", "small", "1b", "8b"))
    parser.add_argument("--stage", choices=("align", "instruct", "full"), help="default: instruct")
    parser.add_argument(
        "--lora", type=whole(RANKS), metavar="RANK", help="adapters; the language model is frozen"
    )
    parser.add_argument(
        "--length", type=whole("[2, 16_777_216]"), metavar="N", help="tokens in a row"
    )
    rows = several(whole("[1, 1_000_000]"))
    parser.add_argument("--text-only", action="store_true", help="rows without pictures")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=whole("[1, 1_000_000]"), default=STEPS, metavar="N")
    for flag, read, form, text in (
        ("--batch", rows, "N", "rows of an update"),
        ("--microbatches", rows, "N", "turns that the rows are worked in"),
        ("--attention", names, "NAME", "as compute.attention"),
        ("--remat", names, "NAME", "as compute.remat"),
    ):
        listed = f"{form}[,{form}]"
        parser.add_argument(flag, type=read, default=(), metavar=listed, help=f"{text}; in turn")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="several values of each of these four that no flag names, in turn, best first",
    )
    parser.add_argument(
        "--profile", metavar="DIR", help="a trace for XProf and Perfetto, and the costliest ops"
    )
    parser.add_argument(
        "--baseline", action="store_true", help="in turn with PyTorch; needs a clone and torch"
    )
    parser.add_argument(
        "--rounds",
        type=whole("[1, 1_000]"),
        metavar="N",
        help=f"of both, with --baseline; default: {ROUNDS}",
    )
    parser.add_argument(
        "--json", metavar="FILE", dest="json_file", help="also write the objects here"
    )


def run(options: argparse.Namespace) -> None:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Request)}
    values["overrides"] = tuple(options.overrides)
    if options.data:
        used = [name for name in values if name not in OF_LOADER and values[name]]
        unused = ", ".join(f"--{name.replace('_', '-')}" for name in used)
        require(not unused, f"bench --data: {unused}: no effect; give --config FILE")

        from mllm_jax.commands.bench import loader

        given = {name: getattr(options, name) for name in ("steps", "json_file", "overrides")}
        loader.main(options.config, **given)
        return
    request = Request(**values)
    request.check()
    if request.baseline:
        from mllm_jax.commands.bench import baseline

        baseline.main(request)
        return

    from mllm_jax.commands.bench import turns

    turns.main(request)
