"""YAML and flags -> frozen config sections, and back.

The only reader and writer of our YAML. Strict: a misspelt key, a wrong type or a value that is not
allowed raises one line that names the key, its value and what is allowed. (General config libraries
accept more and need several lines.)
"""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mllm_jax.common.errors import ConfigError, closest, cut, one_line, quoted, require
from mllm_jax.common.folders import write_whole
from mllm_jax.common.ranges import check, hints, key_of, some
from mllm_jax.common.yaml_file import NotYAML, parse_yaml, read_yaml

T = typing.TypeVar("T")


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Reads one config of type `cls`.

        load(Config, "align.yaml", ["--optimizer.learning_rate", "1e-4"])

    Args:
        cls: a frozen dataclass of `mllm_jax.config`.
        path: the YAML file.
        overrides: flags `--section.key value` (or `--section.key=value`), values written as YAML;
            later ones win. `null` removes a section that the file has, as one of its streams.

    Raises:
        ConfigError: one line naming the key, the value and what is allowed.
    """
    return build(cls, overridden(read_yaml(path), overrides))


def overridden(keys: Mapping[Any, Any], overrides: Sequence[str]) -> dict[Any, Any]:
    """A config file's tree with overrides in it, as in `load`; the tree itself is not changed."""
    tree, removed = copy.deepcopy(dict(keys)), set()
    for key, value in _flags(overrides):
        if value is None and (key in removed or _remove(tree, key.split("."))):
            removed.add(key)
        else:
            _put(tree, key.split("."), value, key)
    return tree


def build(cls: type[T], tree: Mapping[Any, Any]) -> T:
    """A nested dict as a config section; strict about names and types. Raises ConfigError."""
    return _read(cls, tree, "")


def check_keys(cls: type, tree: Mapping[Any, Any], location: str = "") -> None:
    """Raises a ConfigError for a key that the section does not have."""
    keys = [key_of(name) for name in hints(cls)]
    for name in tree:
        if name not in keys:
            near = closest(name, keys)
            hint = f"did you mean {near!r}?" if near else f"allowed are {', '.join(keys)}"
            if isinstance(name, bool) and {"yes", "no"} & {*keys}:
                hint = "put it in quotes: YAML reads yes, no, on and off as true and false"
            raise ConfigError(f"{_join(location, name)}: unknown key; {hint}")


def dump(section: Any, path: str | Path) -> None:
    """Writes a config section as YAML that `load` reads back to an equal section."""
    text = yaml.safe_dump(to_dict(section), sort_keys=False, allow_unicode=True)
    write_whole(Path(path), text)


def to_dict(section: Any) -> Any:
    """A config section as plain dicts, lists and scalars."""
    if dataclasses.is_dataclass(section):
        fields = [field.name for field in dataclasses.fields(section)]
        return {key_of(name): to_dict(getattr(section, name)) for name in fields}
    if isinstance(section, dict):
        return {key: to_dict(value) for key, value in section.items()}
    if isinstance(section, tuple):
        return [to_dict(value) for value in section]
    return section


def split_flags(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """["--section.key", "1", "--b=2"] -> [("--section.key", "1"), ("--b", "2")].

    Raises:
        ConfigError: a word that is not a flag, or a flag without a value.
    """
    pairs, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        require(
            word.startswith("--"),
            f"unexpected argument {quoted(word)}; overrides are written --section.key value",
        )
        flag, equals, value = word.partition("=")
        if not equals:
            name = cut(flag, 82)
            require(len(rest) > 0, f"{name}: value missing; write {name} VALUE")
            value = rest.pop(0)
        pairs.append((flag, value))
    return pairs


def _flags(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    pairs = []
    for flag, value in split_flags(arguments):
        try:
            pairs.append((flag[2:], parse_yaml(value)))
        except NotYAML as error:
            raise ConfigError(
                f"{cut(flag, 82)}: {quoted(value)} is not valid YAML: {error.reason}"
            ) from error
    return pairs


def _remove(tree: Any, keys: list[str]) -> bool:
    """Removes a section (any mapping); whether it was there."""
    for key in keys[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or not isinstance(tree.get(keys[-1]), dict):
        return False
    del tree[keys[-1]]
    return True


def _put(tree: dict[Any, Any], keys: list[str], value: Any, full: str) -> None:
    for key in keys[:-1]:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        require(isinstance(tree, dict), f"--{cut(full, 120)}: {cut(key, 80)} is not a section")
    tree[keys[-1]] = value


def _read(kind: Any, value: Any, location: str) -> Any:
    """`value` as `kind`: dataclass, dict[str, X], tuple[X, ...], X | None, Literal or scalar.

    `Annotated` bounds are held against it, see `ranges`.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        value = _read(args[0], value, location)
        check(kind, value, location)
        return value
    if kind is Any:  # read by whoever takes it, as an override of a sweep
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(some(args), value, location)
    if dataclasses.is_dataclass(kind):
        return _read_section(kind, value, location)
    if origin is dict:
        return _read_mapping(args[1], value, location)
    if origin is tuple:
        _expect(isinstance(value, list | tuple), location, value, "a list")
        fixed = args[-1] is not Ellipsis
        _expect(not fixed or len(value) == len(args), location, value, f"{len(args)} values")
        return tuple(_read(args[0], item, f"{location}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal:
        known = any(type(value) is type(one) and value == one for one in args)
        _expect(known, location, value, " or ".join(map(str, args)))
        return value
    return _read_scalar(kind, value, location)


def _read_mapping(kind: Any, value: Any, location: str) -> dict[str, Any]:
    _expect(isinstance(value, dict), location, value, "a mapping of names to sections")
    for name in value:  # a whole number is a name too: the steps of data.changes
        _expect(type(name) in (str, int), f"{location}: key", name, "text (put it in quotes)")
    if dataclasses.is_dataclass(kind):
        _check_removals(value, location)
    tree = {str(name): _read(kind, item, _join(location, name)) for name, item in value.items()}
    require(len(tree) == len(value), f"{location}: a key is given twice, as text and as number")
    return tree


def _check_removals(sections: dict[Any, Any], location: str) -> None:
    """Refuses null where a section is expected: an override removes those that the file has."""
    names = [str(name) for name, item in sections.items() if item is not None]
    for name in (name for name, item in sections.items() if item is None):
        near = closest(name, names)
        hint = f"did you mean {near!r}?" if near else f"there are {cut(', '.join(names), 120)}"
        place = _join(location, name)
        raise ConfigError(f"{place}: null, and there is none of this name to remove; {hint}")


def _read_section(cls: Any, value: Any, location: str) -> Any:
    if getattr(cls, "shorthand", "") and isinstance(value, str):
        value = {cls.shorthand: value}
    _expect(isinstance(value, dict), location or "config", value, "a section (key: value lines)")
    check_keys(cls, value, location)
    kinds, read = hints(cls), {}
    for f in dataclasses.fields(cls):
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        key = key_of(f.name)
        place = _join(location, key)
        require(key in value or not needed, f"{place}: missing; it has no default")
        if key in value:
            read[f.name] = _read(kinds[f.name], value[key], place)
    return cls(**read)


def _read_scalar(kind: Any, value: Any, location: str) -> Any:
    if kind is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 as text, and people write it all the time
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        _expect(math.isfinite(number), location, value, "a number")
        return number
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    _expect(type(value) is kind, location, value, names.get(kind, str(kind)))
    return value


def _expect(condition: bool, location: str, value: Any, allowed: str) -> None:
    require(condition, f"{location}: expected {allowed}, got {quoted(value)}")


def _join(location: str, name: Any) -> str:
    name = one_line(str(name), 80)
    return f"{location}.{name}" if location else name
