"""States what the fields of config sections may hold, beside their types, and checks it.

    rows: Annotated[int, Range("[1, 1_000_000]")] = 128

`config_file` checks a value when it reads it, and knows the whole path; a `Section` checks its
fields when it is made, from wherever it comes. Every number and text of a config states what it may
hold (tests/common/test_ranges.py finds those that do not).
"""

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from mllm_jax.common import patterns
from mllm_jax.common.errors import ConfigError, quoted


class Bound:
    """What a field may hold: the base class of all bounds inside `Annotated`."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of "FIELD=VALUE ..."; None if nothing is."""
        raise NotImplementedError


@dataclass(frozen=True)
class Range(Bound):
    """Numbers of an interval, written as in mathematics: "[0, 1)" has 0 and everything below 1."""

    interval: str
    hint: str = ""  # what else to do

    def problem(self, value: Any) -> str | None:
        low, high = self.ends
        above = value > low if self.interval[0] == "(" else value >= low
        below = value < high if self.interval[-1] == ")" else value <= high
        return None if above and below else f"must lie in {self.interval}{self._more}"

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The two numbers; whole ones as int, so that large values are compared exactly."""
        low, high = self.interval[1:-1].split(", ")
        return _number(low), _number(high)

    @property
    def _more(self) -> str:
        return f"; {self.hint}" if self.hint else ""


@dataclass(frozen=True)
class Size(Range):
    """How many items a list or a mapping has."""

    def problem(self, value: Any) -> str | None:
        if super().problem(len(value)) is None:
            return None
        if not len(value):
            return f"is empty{self._more}"
        return f"has {len(value):,} entries; their number must lie in {self.interval}{self._more}"


@dataclass(frozen=True)
class Text(Bound):
    """One line of text: 1 to `limit` characters, none of them a control character."""

    limit: int = 4096

    def problem(self, value: Any) -> str | None:
        if not value:
            return "is empty"
        if len(value) > self.limit:
            return f"has {len(value):,} characters; at most {self.limit:,} are allowed"
        if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in value):
            return "holds control characters or half of a surrogate pair"
        return None


@dataclass(frozen=True)
class PathBound(Text):
    """Text that is the path of a file or folder."""


@dataclass(frozen=True)
class Name(Text):
    """Text that also names files and metrics, so it must not climb out of a folder."""

    limit: int = 200

    def problem(self, value: Any) -> str | None:
        if not value or value.startswith("/") or {".", ".."} & set(value.split("/")):
            return "is not a name: it is empty, begins with / or has . or .. between slashes"
        return super().problem(value)


@dataclass(frozen=True)
class Pattern(Bound):
    """A regular expression over parameter paths."""

    def problem(self, value: Any) -> str | None:
        return patterns.problem(value)


# what several sections use
PathText = Annotated[str, PathBound()]
NameText = Annotated[str, Name()]
PatternText = Annotated[str, Pattern()]
Weight = Annotated[float, Range("(0, 1_000_000_000]", "remove the stream instead")]
Step = Annotated[int, Range("[1, 1_000_000_000]")]
Dim = Annotated[int, Range("[1, 1_048_576]")]  # a width of the network


class Section:
    """A config section: frozen, and checked against its bounds when it is created."""

    at: ClassVar[str] = ""  # its path in a stage file, for messages
    shorthand: ClassVar[str] = ""  # field that a text alone stands for, instead of a section

    def __init_subclass__(cls, at: str = "", shorthand: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.at, cls.shorthand = at, shorthand

    def __post_init__(self):
        for name, kind in hints(type(self)).items():
            place = f"{self.at}.{key_of(name)}" if self.at else key_of(name)
            check(kind, getattr(self, name), place)


def check(kind: Any, value: Any, location: str) -> None:
    """Checks a value against the bounds in its type: itself, its items, the keys of a mapping.

    Raises:
        ConfigError: one line with field, value and what is allowed.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        for bound in (extra for extra in args[1:] if isinstance(extra, Bound)):
            if (wrong := bound.problem(value)) is not None:
                equals = ":" if isinstance(bound, Size) else f"={quoted(value)}"
                raise ConfigError(f"{location}{equals} {wrong}")
        check(args[0], value, location)
    elif origin in (types.UnionType, typing.Union):
        if value is not None:
            check(some(args), value, location)
    elif origin is dict:
        for key, item in value.items():
            check(args[0], key, f"{location}: key")
            check(args[1], item, f"{location}.{key}")
    elif origin is tuple:
        for number, item in enumerate(value):
            check(args[0], item, f"{location}[{number}]")


def some(args: tuple[Any, ...]) -> Any:
    """X of `X | None`."""
    return next(arg for arg in args if arg is not types.NoneType)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field -> its type with bounds, in order."""
    types_of = typing.get_type_hints(cls, include_extras=True)
    return {field.name: types_of[field.name] for field in dataclasses.fields(cls)}


def key_of(field: str) -> str:
    """The YAML key of a field: `from_` is `from`, which Python reserves."""
    return field.removesuffix("_")


def unstated(kind: Any, location: str) -> list[str]:
    """Places inside a type that hold numbers, texts or collections without a bound."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bounded = any(isinstance(extra, Bound) for extra in args[1:])
        return [place for place in unstated(args[0], location) if place != location or not bounded]
    if origin in (types.UnionType, typing.Union):
        return unstated(some(args), location)
    if origin is dict:
        return [
            location,
            *unstated(args[0], f"{location} key"),
            *unstated(args[1], f"{location}.*"),
        ]
    if origin is tuple:
        items = [
            place for arg in args if arg is not ... for place in unstated(arg, f"{location}[]")
        ]
        return [location, *items] if ... in args else items
    if dataclasses.is_dataclass(kind):
        return [p for name, one in hints(kind).items() for p in unstated(one, f"{location}.{name}")]
    return [location] if kind in (int, float, str) else []


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
