"""Verbs and flags of the command line. Others script them: what stands here keeps its name."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from mllm_jax.common.errors import LINE, one_line, shown
from mllm_jax.common.ranges import Range
from mllm_jax.distributed.cluster import PATIENCE

TAKE_OVERRIDES = ("train", "prepare", "inspect", "preflight")  # what reads one stage file
SEVERAL = ("train", "recipe")  # what runs on several processes


def make_parser() -> argparse.ArgumentParser:
    """The parser; `verb` says which door is meant, and `way` which one of `convert`."""
    parser = _Parser(
        prog="mllm-jax",
        description="Train multimodal large language models for low-resource languages, in JAX.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_quickstart(verbs)
    _add_train(verbs)
    _add_prepare(verbs)
    _add_inspect(verbs)
    _add_preflight(verbs)
    _add_recipe(verbs)
    _add_convert(verbs)
    _add_generate(verbs)
    _add_evaluate(verbs)
    _add_bench(verbs)
    return parser


def _verb(verbs, name: str, text: str, usage: str | None = None):
    return verbs.add_parser(name, help=text, description=text, usage=usage, allow_abbrev=False)


def _add_quickstart(verbs) -> None:
    it = _verb(verbs, "quickstart", "the whole way in minutes, on handwritten digits")
    it.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR")
    it.add_argument(
        "--share",
        type=_number("(0, 1]"),
        default=1.0,
        metavar="X",
        help="share of the steps, to try it (0..1]",
    )


def _add_train(verbs) -> None:
    flags = "[--resume [auto]] [--accept-changed-data] "
    flags += "[--coordinator HOST:PORT --processes N --process I]"
    usage = f"mllm-jax train --config FILE {flags} [--section.key value ...]"
    it = _verb(verbs, "train", "one stage, from a YAML file", usage)
    it.add_argument("--config", type=Path, required=True, metavar="FILE")
    it.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=("auto",),
        metavar="auto",
        help="go on from the run's last checkpoint; auto: if a run has begun there",
    )
    it.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: go on although the streams hold other records than the run began with",
    )
    _add_cluster(it)


def _add_cluster(it) -> None:
    """The place of a process among several; without flags, the environment says it."""
    it.add_argument("--coordinator", metavar="HOST:PORT", help="process 0; PORT + 1 is used too")
    it.add_argument(
        "--processes", type=_whole("[1, 1_000_000]"), metavar="N", help="of the whole run"
    )
    it.add_argument(
        "--process", type=_whole("[0, 999_999]"), metavar="I", help="which one this is, from 0"
    )
    helps = {
        "lost_after": "silence after which a process is lost and all others end",
        "join_within": "until all processes must be there",
        "stuck_after": "all processes alive and all waiting, after which they end",
    }
    for name, seconds in PATIENCE._asdict().items():
        text = f"{helps[name]}; default: {seconds:g}"
        flag = f"--{name.replace('_', '-')}"
        it.add_argument(
            flag, type=_number("(0, 1_000_000_000]"), default=seconds, metavar="SECONDS", help=text
        )


def _add_prepare(verbs) -> None:
    usage = "mllm-jax prepare (RECIPE | --config FILE [--section.key value ...]) [--workers N] "
    usage += "[--json FILE]"
    text = "fetch, read, check and index the data of a stage, or of all stages of a recipe; "
    it = _verb(verbs, "prepare", f"{text}afterwards it runs offline", usage)
    # RECIPE is no positional of argparse: it would take the value of an override for one
    it.add_argument("--config", type=Path, metavar="FILE", help="one stage, instead of RECIPE")
    it.add_argument(
        "--workers", type=_whole("[1, 10_000]"), metavar="N", help="processes; default: all cores"
    )
    it.add_argument("--json", metavar="FILE", dest="json_file", help="also write the report here")


def _add_inspect(verbs) -> None:
    flags = "--config FILE [--step N] [--rows K] --out DIR [--section.key value ...]"
    text = "a page with the rows of any step as the model gets them, and the mixture"
    it = _verb(verbs, "inspect", text, f"mllm-jax inspect {flags}")
    it.add_argument("--config", type=Path, required=True, metavar="FILE")
    it.add_argument(
        "--step",
        type=_whole("[0, 1_000_000_000]"),
        default=0,
        metavar="N",
        help="from 0 on; default: 0",
    )
    it.add_argument(
        "--rows",
        type=_whole("[1, 1_000_000]"),
        default=4,
        metavar="K",
        help="rows that are shown; default: 4",
    )
    it.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets index.html")


def _add_preflight(verbs) -> None:
    flags = "--config FILE --hardware CHIPS [--json] [--section.key value ...]"
    text = "does a stage fit on hardware that is not here, how fast may it be, what would fit"
    it = _verb(verbs, "preflight", text, f"mllm-jax preflight {flags}")
    it.add_argument("--config", type=Path, required=True, metavar="FILE")
    chips = "for example v5e:16x16, v5p:4x4x4, v6e:8x8, h200:8, cpu:8"
    it.add_argument("--hardware", required=True, metavar="CHIPS", help=chips)
    it.add_argument("--json", action="store_true", help="one object instead of the table")


def _add_recipe(verbs) -> None:
    it = _verb(verbs, "recipe", "stages in order, then evaluation and export")
    it.add_argument("file", type=Path, metavar="FILE")
    it.add_argument("--out", type=Path, metavar="DIR", help="default: the file's own `out`")
    _add_cluster(it)


def _add_convert(verbs) -> None:
    text = "Hugging Face folder <-> model folder; two backbones -> one model"
    ways = verbs.add_parser("convert", help=text, description=text, allow_abbrev=False)
    ways = ways.add_subparsers(dest="way", metavar="WAY", required=True)
    it = _verb(ways, "from-hf", "a Hugging Face folder into a model folder")
    it.add_argument("src", type=Path, metavar="SRC")
    it.add_argument("out", type=Path, metavar="OUT")
    it = _verb(ways, "join", "CLIP and Llama into one model, with a fresh connector")
    it.add_argument("out", type=Path, metavar="OUT")
    it.add_argument("--vision", type=Path, required=True, metavar="CLIP_DIR")
    it.add_argument("--language", type=Path, required=True, metavar="LLAMA_DIR")
    it.add_argument("--connector", choices=("linear", "mlp"), default="linear")
    it = _verb(ways, "to-hf", "a model or run folder into a Hugging Face folder")
    it.add_argument("model", type=Path, metavar="MODEL")
    it.add_argument("out", type=Path, metavar="OUT")
    it.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")


def _add_generate(verbs) -> None:
    it = _verb(verbs, "generate", "answer a prompt about images")
    it.add_argument("model", type=Path, metavar="MODEL", help="a model, run or Hugging Face folder")
    it.add_argument("--prompt", required=True, metavar="TEXT")
    it.add_argument(
        "--image", type=Path, nargs="+", action="extend", default=[], metavar="FILE", dest="images"
    )
    it.add_argument("--max-new-tokens", type=_whole("[1, 1_048_576]"), default=128, metavar="N")
    it.add_argument(
        "--temperature", type=_number("[0, 1_000_000]"), default=0.0, metavar="T", help="0: greedy"
    )
    it.add_argument(
        "--seed", type=_whole("[-4_294_967_295, 4_294_967_295]"), default=0, metavar="S"
    )
    it.add_argument("--json", action="store_true", help="one object: text, tokens, prompt_tokens")


def _add_evaluate(verbs) -> None:
    it = _verb(verbs, "evaluate", "answers and losses on held-out data, per language")
    it.add_argument("model", type=Path, metavar="MODEL", help="a model, run or Hugging Face folder")
    it.add_argument("--data", type=Path, required=True, metavar="FILE", help="LLaVA JSON or JSONL")
    it.add_argument("--out", type=Path, metavar="DIR", help="answers.jsonl, scores.json, scores.md")
    it.add_argument("--images", type=Path, metavar="DIR", help="where image paths start")


def _add_bench(verbs) -> None:
    text = "throughput of the real step on synthetic rows, or of a stage's loader"
    it = _verb(verbs, "bench", text)
    it.add_argument("--data", action="store_true", help="the loader alone; needs --config")
    what = it.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE")
    what.add_argument("--size", choices=("tiny", "small", "1b", "8b"))
    it.add_argument("--stage", choices=("align", "instruct", "full"), help="default: instruct")
    it.add_argument("--length", type=_whole("[2, 16_777_216]"), metavar="N", help="tokens in a row")
    it.add_argument("--batch", type=_whole("[1, 1_000_000]"), metavar="N", help="rows")
    it.add_argument("--steps", type=_whole("[1, 1_000_000]"), default=5, metavar="N")
    it.add_argument("--dtype", choices=("float32", "bfloat16"))
    it.add_argument("--remat", choices=("none", "dots", "full"), metavar="NAME")
    it.add_argument("--json", metavar="FILE", dest="json_file", help="also write the numbers here")


# ------------------------------------------------------------------------------------ kinds of flag


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage: that is what --help is for."""

    def error(self, message: str) -> NoReturn:
        before, after = f"{self.prog}: error: ", f"; see {self.prog} --help"
        message = one_line(message, LINE - len(before) - len(after))
        self.exit(2, f"{before}{message}{after}\n")


def _whole(interval: str) -> Callable[[str], int]:
    """A kind of flag: whole numbers of an interval, see `ranges.Range`."""
    return partial(_read, int, "a whole number", Range(interval))


def _number(interval: str) -> Callable[[str], float]:
    """A kind of flag: numbers of an interval."""
    return partial(_read, float, "a number", Range(interval))


def _read(kind: type, name: str, bound: Range, text: str) -> Any:
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {name}, got {shown(text)}") from error
    if (wrong := bound.fault(value)) is not None:
        raise argparse.ArgumentTypeError(f"{shown(value)} {wrong}")
    return value
