"""Looks up the words of a language that scores depend on: yes and no, articles, number words.

    language("eu").yes   ->  ("bai",)

A language without a table is an error that says what to add: scores are never computed with the
words of another language.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mllm_jax.common.errors import ConfigError, closest, quoted
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config.loading import build

NO_LANGUAGE = "und"  # ISO 639's code for undetermined: compare without any table
NEEDED_BY = {  # field -> what cannot be computed without it
    "yes": "yes/no answers",
    "no": "yes/no answers",
    "negations": "POPE's own rule",
    "articles": "VQA accuracy",
    "numbers": "VQA accuracy",
    "contractions": "VQA accuracy",
}


@dataclass(frozen=True)
class Language:
    """The words of one language. None is not stated, which `need` refuses; empty is a statement."""

    name: str  # in English
    iso3: str = ""  # code of three letters, as GlotLID labels it
    endonym: str = ""
    yes: tuple[str, ...] | None = None  # the first is the label that benchmarks use
    no: tuple[str, ...] | None = None
    negations: tuple[str, ...] | None = None  # exact words of POPE's own rule
    articles: tuple[str, ...] | None = None  # one that ends in ' is cut off a word's start
    numbers: dict[str, str] | None = field(default=None, hash=False)  # word -> digits
    contractions: dict[str, str] | None = field(default=None, hash=False)
    letters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of options, in order

    def need(self, name: str) -> Any:
        """A field that a score depends on.

        Raises:
            ConfigError: the table does not state it.
        """
        value = getattr(self, name)
        if value is None:
            raise ConfigError(
                f"the table of {self.name} states no {name!r}, which {NEEDED_BY[name]} need; "
                "give its words in a task file (docs/metrics.md)"
            )
        return value


def language(code: str) -> Language:
    """The table of a language.

    Args:
        code: as in the table file: "eu"; a region behind it ("eu-ES") is left out. "und" compares
            without any table.

    Raises:
        ConfigError: no table for this language; never another language's instead.
    """
    known = all_languages()
    short = code.replace("_", "-").split("-")[0].lower()
    if short in known:
        return known[short]
    near = closest(short, known)
    hint = f"did you mean {near!r}? " if near else ""
    raise ConfigError(
        f"language {quoted(code, 40)} has no table of words: {hint}tables exist for "
        f"{', '.join(sorted(known))}; give its words in a task file (docs/metrics.md), those of "
        f"{NO_LANGUAGE!r} to compare without any"
    )


@functools.cache
def all_languages() -> Mapping[str, Language]:
    """All tables by code."""
    tables = read_yaml(Path(__file__).with_name("languages.yaml"))
    return MappingProxyType({code: build(Language, tree) for code, tree in tables.items()})
