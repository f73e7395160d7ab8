"""Describes every option of the config files: docs/config.md and the last part of `train --help`.

What an option means is the text under its field, type and range are those of the field itself, so
the reference cannot differ from what is checked. It is read from the source, when it is asked for.

    python -m mllm_jax.config.reference > docs/config.md
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from mllm_jax.common.markdown import markdown_table
from mllm_jax.common.ranges import Bound, PathBound, Pattern, Range, Size, hints, key_of, some
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config, FolderConfig
from mllm_jax.config.sweep import SweepConfig

REQUIRED = "required"
EMPTY = ("null", "{}", "[]")


class Option(NamedTuple):
    """One key of a config file."""

    name: str  # inside its section
    kind: str  # "integer", "list of text"
    default: str  # as YAML, or REQUIRED
    allowed: str  # "[0, 1)", or the values of a choice; empty where the kind says all
    meaning: str  # paragraphs of the field's text; the first is one sentence or two
    choices: tuple[str, ...]  # values that it may have, if they are few


class SectionOptions(NamedTuple):
    """A section of a config file and its own options, without those of the sections inside."""

    path: str  # "data.streams.NAME"; empty for the file itself
    default: str  # of the whole section: REQUIRED, "null", or empty for its options' defaults
    meaning: str
    options: list[Option]


def sections(cls: type, path: str = "", default: str = REQUIRED) -> Iterator[SectionOptions]:
    """A config class and the sections inside it, in the order of their fields."""
    meanings, inside, options = field_docs(cls), [], []
    for field in dataclasses.fields(cls):
        kind, name = hints(cls)[field.name], field.name
        if (section := _section_of(kind)) is None:
            allowed, choices = ", ".join(_allowed(kind)), tuple(_choices(kind))
            texts = _kind(kind), _default(field), allowed, meanings.get(name, "")
            options.append(Option(key_of(name), *texts, choices))
            continue
        deeper = [path, name] if path else [name]
        if _is_mapping(kind):
            deeper.append("NAME")
        elif _is_list(kind):
            deeper[-1] += "[]"
        inside.append((section, ".".join(deeper), _default(field)))
    yield SectionOptions(path, default, inspect.getdoc(cls) or "", options)
    for section in inside:
        yield from sections(*section)


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the text under it in the source, its lines joined to paragraphs."""
    return {name: _paragraphs(text) for name, text in _module_docs(cls.__module__)[cls.__name__]}


@functools.cache
def _module_docs(module: str) -> dict[str, list[tuple[str, str]]]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name: list(_texts_under_fields(node)) for node in classes}


def _texts_under_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield field.target.id, str(text.value.value)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()))


# ------------------------------------------------------------------------------------------- types


def _plain(kind: Any) -> Any:
    """A type without bounds and without `| None`."""
    while typing.get_origin(kind) in (Annotated, types.UnionType, typing.Union):
        args = typing.get_args(kind)
        kind = args[0] if typing.get_origin(kind) is Annotated else some(args)
    return kind


def _is_mapping(kind: Any) -> bool:
    return typing.get_origin(_plain(kind)) is dict


def _is_list(kind: Any) -> bool:
    return typing.get_origin(_plain(kind)) is tuple


def _section_of(kind: Any) -> type | None:
    """The config class that a field holds: itself, by name, or as the items of a list."""
    plain = _plain(kind)
    if _is_mapping(plain) or _is_list(plain):
        plain = _plain(typing.get_args(plain)[1 if _is_mapping(plain) else 0])
    return plain if dataclasses.is_dataclass(plain) and isinstance(plain, type) else None


def _kind(kind: Any) -> str:
    if any(isinstance(bound, Pattern) for bound in _bounds(kind)):
        return "regex"
    if any(isinstance(bound, PathBound) for bound in _bounds(kind)):
        return "path"
    plain = _plain(kind)
    origin, args = typing.get_origin(plain), typing.get_args(plain)
    if origin is dict:
        return f"mapping of {_kind(args[0])} to {_kind(args[1])}"
    if origin is tuple:
        item = _kind(args[0])
        several = item if item == "text" or item.endswith("s") else f"{item}s"
        return f"list of {several}" if args[-1] is Ellipsis else f"{len(args)} {several}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "value"}
    return names.get(plain, "choice")


def _bounds(kind: Any) -> Iterator[Bound]:
    """The bounds of a type, of itself and then of what it holds."""
    if typing.get_origin(kind) is Annotated:
        yield from (extra for extra in typing.get_args(kind)[1:] if isinstance(extra, Bound))
    if typing.get_origin(kind) in (Annotated, types.UnionType, typing.Union):
        args = typing.get_args(kind)
        yield from _bounds(args[0] if typing.get_origin(kind) is Annotated else some(args))


def _allowed(kind: Any) -> Iterator[str]:
    for bound in _bounds(kind):
        if isinstance(bound, Range) and not isinstance(bound, Size):
            yield bound.interval
    plain = _plain(kind)
    origin, args = typing.get_origin(plain), typing.get_args(plain)
    if origin is typing.Literal:
        yield from map(str, args)
    if origin in (dict, tuple):
        yield from _allowed(args[1] if origin is dict else args[0])


def _choices(kind: Any) -> Iterator[str]:
    plain = _plain(kind)
    if typing.get_origin(plain) is typing.Literal:
        yield from map(str, typing.get_args(plain))
    if plain is bool:
        yield from ("true", "false")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return _yaml(field.default)
    if field.default_factory is dataclasses.MISSING:
        return REQUIRED
    value = field.default_factory()
    return "" if dataclasses.is_dataclass(value) else _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-").replace("e+0", "e+")
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


# -------------------------------------------------------------------------------------------- text

INTRO = """\
# Config reference

Every option of the four kinds of config files, with type, default and allowed values. This page is
written by `python -m mllm_jax.config.reference` from the fields in `mllm_jax/config/`; a test
compares them.

- A file is YAML. A key that is not listed here, another type or a value outside its range is
  refused in one line.
- On the command line any option of a stage file is `--section.key value`, for example
  `--optimizer.learning_rate 1e-4`; `mllm-jax train --help` lists them. [From Python](python.md) it
  is `load_config(path, {"optimizer.learning_rate": 1e-4})`.
- `NAME` stands for a name that you choose, as of a stream. Ranges are written as in mathematics:
  `[0, 1)` has 0 and everything below 1. `null` is no value.
"""
FILES = {
    "Stage file": (
        Config,
        "read by `train`, `prepare --config`, `inspect`, `preflight` and `bench`",
    ),
    "Recipe file": (RecipeConfig, "read by `recipe` and `prepare`"),
    "Sweep file": (SweepConfig, "read by `sweep`"),
    "config.yaml of a model folder": (FolderConfig, "written beside the parameters of a model"),
}
HEAD = ("key", "type", "default", "allowed", "meaning")


def reference() -> str:
    """The text of docs/config.md."""
    blocks, described = [INTRO], set()
    for title, (cls, use) in FILES.items():
        blocks.append(f"## {title}\n\n{_paragraphs(inspect.getdoc(cls) or '')} It is {use}.\n")
        for section in sections(cls):
            if section.path and section.path in described:
                continue  # `model` of a model folder is that of a stage
            described.add(section.path)
            blocks.append(_section_text(section))
    blocks.append("The sections of `model` are those of a stage file.\n")
    return "\n".join(block for block in blocks if block)


def _section_text(section: SectionOptions) -> str:
    parts = []
    if section.path:
        optional = " Optional." if section.default == "null" else ""
        parts.append(f"### {section.path}\n\n{_paragraphs(section.meaning)}{optional}\n")
    if section.options:
        rows = [
            [f"`{o.name}`", o.kind, _code(o.default), _code(o.allowed), o.meaning]
            for o in section.options
        ]
        cells = [[cell.replace("\n\n", " ").replace("|", "\\|") for cell in row] for row in rows]
        parts.append(markdown_table(HEAD, cells, numbers=False))
    return "\n".join(parts)


def _code(text: str) -> str:
    return f"`{text}`" if text and text != REQUIRED else text


def options_help() -> str:
    """The options of a stage file for a terminal: a line or two of each, by section."""
    width = min(max(shutil.get_terminal_size().columns, 72), 120)
    lines = ["options of the stage file, with their defaults (more in docs/config.md):"]
    for section in sections(Config):
        if section.options:
            path = f"{section.path}." if section.path else ""
            lines += ["", f"--{path}KEY VALUE"]
        for option in section.options:
            lines += _help_lines(option, width)
    return "\n".join(lines) + "\n"


def _help_lines(option: Option, width: int) -> list[str]:
    default = "" if option.default in EMPTY else f" ({option.default})"
    left, indent = f"  {option.name}{default}", " " * 30
    meaning = first_sentence(option)
    if option.choices and option.kind == "choice":
        meaning += f" One of: {', '.join(option.choices)}."
    text = textwrap.wrap(meaning, width - len(indent))
    if len(left) < len(indent) - 1:
        return [left.ljust(len(indent)) + text[0], *(indent + line for line in text[1:])]
    return [left, *(indent + line for line in text)]


def first_sentence(option: Option) -> str:
    """What an option means, in short."""
    return re.split(r"(?<=\.)(?:\n\n|\s+(?=[A-Z]))", option.meaning, maxsplit=1)[0]


if __name__ == "__main__":
    sys.stdout.write(reference())
