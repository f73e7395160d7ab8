"""What flags of several commands share: a parser with one-line errors, ranges, clusters.

Flags are a public interface: do not rename them.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from mllm_jax.common.errors import LINE, one_line, quoted, require
from mllm_jax.common.ranges import Range
from mllm_jax.distributed.cluster import TIMEOUTS

if TYPE_CHECKING:
    from mllm_jax.config.stage import Config

# data.chat.templates.TEMPLATES, which loads slowly; those that ask questions first
CHAT_FORMATS = ("llama31", "llama3", "vicuna_v1", "plain", "plain_newline")
QUESTION_FORMATS = CHAT_FORMATS[:3]


class Usage(NamedTuple):
    """How a command presents itself, and what the command line does for it."""

    summary: str  # one line of `mllm-jax --help`
    arguments: str | None = None  # written out where argparse cannot tell (overrides)
    overrides: bool = False  # takes --section.key value for a stage's config
    several: bool = False  # may run as several processes


def add_stage(parser: argparse.ArgumentParser) -> None:
    """The file of one stage, which overrides may follow."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")


def add_only(parser: argparse.ArgumentParser) -> None:
    """Which part of a recipe's tree a command is about."""
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="NAME",
        help="of a recipe: these stages or variants and what they start from, nothing else",
    )


def add_recipe_or_stage(parser: argparse.ArgumentParser) -> None:
    """A recipe, or by --config one stage; see `recipe_or_stage`."""
    # RECIPE is not a positional of argparse: it would take the value of an override for one
    parser.add_argument("--config", type=Path, metavar="FILE", help="one stage, instead of RECIPE")
    add_only(parser)


def recipe_or_stage(options: argparse.Namespace, verb: str) -> tuple[Path, list[str]] | None:
    """The recipe file and its overrides; None where --config names one stage.

    Raises:
        ConfigError: neither is given, or --only beside a stage.
    """
    if options.config is None:
        hint = "a recipe file, before all overrides, or --config FILE for one stage"
        return recipe_file(options, f"{verb}: give {hint}")
    require(not options.only, f"{verb}: --only names stages of a recipe, not of --config")
    return None


def recipe_file(options: argparse.Namespace, missing: str) -> tuple[Path, list[str]]:
    """The recipe file and its overrides. Raises ConfigError, which says `missing`, without it."""
    arguments = options.overrides
    require(len(arguments) > 0 and not arguments[0].startswith("-"), missing)
    return Path(arguments[0]), arguments[1:]


def load_stage(options: argparse.Namespace) -> "Config":
    """Reads the stage's file and overrides, before anything slow is imported.

    Raises:
        ConfigError: the file or an override is not valid.
    """
    from mllm_jax.checkpoints import stage_file

    return stage_file.load(options.config, options.overrides)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """The place of a process among several; without flags, the environment tells it."""
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="process 0; PORT + 1 is used too"
    )
    parser.add_argument(
        "--processes", type=whole("[1, 1_000_000]"), metavar="N", help="of the whole run"
    )
    parser.add_argument(
        "--process", type=whole("[0, 999_999]"), metavar="I", help="which one this is, from 0"
    )
    helps = {
        "lost_after": "abort if a process is silent for this long",
        "join_within": "abort if a process has not joined after this long",
        "stuck_after": "abort if all processes are alive but none makes progress for this long",
    }
    for name, seconds in TIMEOUTS._asdict().items():
        text = f"{helps[name]}; default: {seconds:g}"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=number("(0, 1_000_000_000]"), default=seconds, metavar="SECONDS", help=text
        )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """How many of a process's devices share one copy of the model, see `generation.devices`."""
    for name in ("fsdp", "tensor"):
        parser.add_argument(
            f"--{name}",
            type=whole("[1, 65_536]"),
            default=1,
            metavar="N",
            help=f"devices that share the parameters, as mesh.{name} in training; default: 1",
        )


def add_extras(parser: argparse.ArgumentParser) -> None:
    """What is computed of answers beside a task's own numbers, see `evaluation.extras`."""
    parser.add_argument(
        "--fidelity",
        nargs="+",
        default=[],
        metavar="xx",
        help="also whether answers are in their question's language; those to tell apart: eu en",
    )
    parser.add_argument(
        "--identifier",
        type=Path,
        metavar="FILE",
        help="with --fidelity: a fastText model such as GlotLID's, in the place of py3langid",
    )
    parser.add_argument(
        "--chrf",
        action="store_true",
        help="also chrF2, chrF++ and BLEU against the true answers, by sacrebleu",
    )


class Parser(argparse.ArgumentParser):
    """Reports what is wrong in one line, without the usage: that is what --help is for."""

    overrides = False  # whether --help lists the options of a stage file, too

    def format_help(self) -> str:
        if not self.overrides:
            return super().format_help()
        from mllm_jax.config.reference import options_help  # read for --help alone

        return f"{super().format_help()}\n{options_help()}"

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse swallows a full disk

    def error(self, message: str) -> NoReturn:
        before, after = f"{self.prog}: error: ", f"; see {self.prog} --help"
        message = one_line(message, LINE - len(before) - len(after))
        self.exit(2, f"{before}{message}{after}\n")


def whole(interval: str) -> Callable[[str], int]:
    """The type of a flag that takes whole numbers of an interval, see `ranges.Range`."""
    return partial(_read, int, "a whole number", Range(interval))


def number(interval: str) -> Callable[[str], float]:
    """The type of a flag that takes numbers of an interval."""
    return partial(_read, float, "a number", Range(interval))


def several(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """The type of a flag that takes values between commas; each counts once."""
    return lambda text: tuple(dict.fromkeys(read(part) for part in text.split(",")))


def names(text: str) -> tuple[str, ...]:
    """The type of a flag that takes names between commas, which the config checks."""
    if not all(map(str.strip, text.split(","))):
        raise argparse.ArgumentTypeError(f"expected names between commas, got {quoted(text)}")
    return several(str.strip)(text)


def _read(kind: type, name: str, bound: Range, text: str) -> Any:
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {name}, got {quoted(text)}") from error
    if (wrong := bound.problem(value)) is not None:
        raise argparse.ArgumentTypeError(f"{quoted(value)} {wrong}")
    return value
