"""`mllm-jax generate`: answers one prompt about images."""

import argparse
import json
from pathlib import Path

from mllm_jax.commands.flags import Usage, add_devices, number, whole

USAGE = Usage("answer a prompt about images")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a model, run or Hugging Face folder"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument(
        "--image", type=Path, nargs="+", action="extend", default=[], metavar="FILE", dest="images"
    )
    parser.add_argument("--max-new-tokens", type=whole("[1, 1_048_576]"), default=128, metavar="N")
    parser.add_argument(
        "--temperature", type=number("[0, 1_000_000]"), default=0.0, metavar="T", help="0: greedy"
    )
    parser.add_argument(
        "--seed", type=whole("[-4_294_967_295, 4_294_967_295]"), default=0, metavar="S"
    )
    parser.add_argument(
        "--json", action="store_true", help="one object: text, tokens, prompt_tokens"
    )
    add_devices(parser)


def run(options: argparse.Namespace) -> None:
    from mllm_jax.generation.answer import generate
    from mllm_jax.generation.devices import Devices

    result = generate(
        options.model,
        options.prompt,
        options.images,
        options.max_new_tokens,
        options.temperature,
        options.seed,
        devices=Devices(options.fsdp * options.tensor, options.fsdp, options.tensor),
    )
    print(json.dumps(result._asdict(), ensure_ascii=False) if options.json else result.text)
