"""Looks up the words of a language that scores depend on: yes and no, articles, number words.

    language("eu").yes   ->  ("bai",)

A language without a table is an error that says what to add: scores are never computed with the
words of another language.
"""

import functools
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mllm_jax.common.errors import ConfigError, closest, quoted, require
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

    def __post_init__(self):
        for name in ("yes", "no", "negations"):
            require(getattr(self, name) != (), f"words of {self.name}: {name} has no words")
        several = len(set(self.letters)) == len(self.letters) > 1
        require(
            several and self.letters == self.letters.upper(),
            f"words of {self.name}: letters={quoted(self.letters, 40)} are not two or more capital "
            "letters, each once",
        )
        for name in ("yes", "no", "articles"):  # answers are compared composed and in lower case
            self._normalise(name, lambda words: tuple(_lower(word) for word in words))
        self._normalise("negations", lambda words: tuple(map(_composed, words)))
        for name in ("numbers", "contractions"):
            self._normalise(name, lambda pairs: {_lower(k): _composed(v) for k, v in pairs.items()})

    def _normalise(self, name: str, change: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, change(value))

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


def _composed(word: str) -> str:
    return unicodedata.normalize("NFC", word)


def _lower(word: str) -> str:
    return _composed(word).lower()


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
