"""`mllm-jax completion`: a script that completes verbs, flags and overrides in a shell."""

import argparse
from collections.abc import Iterator

from mllm_jax.commands.flags import Parser, Usage

USAGE = Usage("a script that completes verbs, flags and overrides in a shell")
SHELLS = ("bash", "zsh", "fish")
# metavar of a flag or positional -> what shtab completes
PATHS = {
    **dict.fromkeys(("FILE", "RECIPE"), "FILE"),
    **dict.fromkeys(("DIR", "MODEL", "SRC", "OUT", "VISION_DIR", "LLAMA_DIR"), "DIRECTORY"),
}
# verbs whose first word is a file that argparse is not told of
RECIPES = ("prepare", "preflight", "recipe")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "for example: source <(mllm-jax completion bash)"
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> None:
    print(script(options.parser, options.shell), end="")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a whole command line; the parser is of no other use afterwards."""
    import shtab

    for verb in _parsers(parser):
        if verb.prog.split()[-1] in RECIPES:
            verb.add_argument("file", nargs="?", metavar="RECIPE")
        if verb.overrides:
            _add_overrides(verb)
        for action in verb._actions:
            kind = PATHS.get(str(action.metavar))
            if kind is not None:
                action.complete = getattr(shtab, kind)  # pyright: ignore[reportAttributeAccessIssue]
    return shtab.complete(parser, shell)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    """All parsers inside a parser, those of `convert from-hf` and the like as well."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inside in action.choices.values():
                yield inside
                yield from _parsers(inside)


def _add_overrides(verb: argparse.ArgumentParser) -> None:
    """The options of a stage file as flags; not those under names that its author chooses."""
    from mllm_jax.config.reference import first_sentence, sections
    from mllm_jax.config.stage import Config

    for section in sections(Config):
        if "NAME" in section.path.split("."):
            continue
        for option in section.options:
            key = f"{section.path}.{option.name}" if section.path else option.name
            if f"--{key}" in verb._option_string_actions:
                continue  # `inspect --out` is the page, not the run folder
            verb.add_argument(
                f"--{key}",
                help=first_sentence(option).replace("%", "%%"),
                choices=option.choices or None,
                metavar="FILE" if option.kind == "path" else "VALUE",
            )
