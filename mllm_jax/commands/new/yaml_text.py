"""Writes YAML whose values carry the reason why they are that, as comments."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from mllm_jax.commands.new.choices import Choice

WIDTH = 110  # a longer comment is set before its value


def yaml_text(tree: Mapping[str, Any], head: str) -> str:
    """A config file.

    Args:
        tree: nested mappings; leaves are values, or Choices whose reason becomes a comment.
        head: comment at the top, wrapped.
    """
    return _comment(head, "") + "\n" + "\n".join(_lines(tree, "", top=True)) + "\n"


def _lines(tree: Mapping[str, Any], indent: str, top: bool = False) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{_flow(key)}:", *_lines(value, indent + "  "), *([""] * top)]
            continue
        chosen, why = value if isinstance(value, Choice) else (value, "")
        line = f"{indent}{_flow(key)}: {_flow(chosen)}"
        if why and len(line) + len(why) + 3 > WIDTH:
            lines.append(_comment(why, indent))
        elif why:
            line += f" # {why}"
        lines.append(line)
    return lines


def _comment(text: str, indent: str) -> str:
    before = f"{indent}# "
    return textwrap.fill(text, WIDTH, initial_indent=before, subsequent_indent=before)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def chosen(tree: Mapping[str, Any], place: str = "") -> list[str]:
    """`key = value: why` of every Choice, for the terminal."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += chosen(value, f"{place}{key}.")
        elif isinstance(value, Choice):
            lines.append(f"{place}{key} = {_flow(value.value)}: {value.why}")
    return lines
