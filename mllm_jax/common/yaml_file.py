"""Reads YAML into plain dicts, lists and scalars, with bounded work and one-line errors.

A smaller language than PyYAML's `SafeLoader`, for configs alone: no dates (text that reads as one
is written in quotes), no binary, sets or other tags, no numbers in base 60 or with leading zeros
(`1:30` and `010` are text, not 90 and 8), no key twice. Aliases and `<<` are kept, but what they
make is counted before it is built, so nine lines cannot ask for gigabytes.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mllm_jax.common.errors import ConfigError, one_line, quoted, require

BYTES = 2**20  # of a file; the largest of ours has four thousand
DEPTH = 50  # sections inside sections
NODES = 100_000  # keys, values and lists, those of an alias counted wherever it is used
TAG = "tag:yaml.org,2002:"


class NotYAML(ValueError):
    """Text that cannot be read as YAML, and the line where that shows."""

    def __init__(self, reason: str, line: int):
        super().__init__(reason)
        self.reason, self.line = reason, line


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """A YAML file as a dict.

    Raises:
        ConfigError: a missing file, no text, broken YAML (with its line), or no mapping.
    """
    path = Path(path)
    require(not path.is_dir(), f"{path}: is a folder; give a YAML file")
    require(path.is_file(), f"{path}: no such file")
    size = path.stat().st_size
    require(size <= BYTES, f"{path}: has {size:,} bytes; a config has at most {BYTES:,}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"{path}: not UTF-8 text: {place}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        tree = parse_yaml(text)
    except NotYAML as error:
        raise ConfigError(f"{path}:{error.line}: not valid YAML: {error.reason}") from error
    require(tree is not None, f"{path}: the file is empty; expected sections (a mapping)")
    require(
        isinstance(tree, dict),
        f"{path}: expected sections (a mapping), found {type(tree).__name__}",
    )
    return tree


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of one document.

    Raises:
        NotYAML: bad syntax, or more than the smaller language above allows.
    """
    try:
        return _apart(_Loader(text).get_single_data())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = f"character U+{int(error.character):04X} is not allowed"
        raise NotYAML(reason, line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise NotYAML(one_line(str(error.problem), 160), line) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader with fewer tags, and with limits that hold before anything is constructed."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # id of a finished node -> values that it stands for

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        event = self.peek_event()
        if self._depth >= DEPTH:
            _refuse(f"nested deeper than {DEPTH} levels", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                _refuse("an alias inside of what it stands for", event)
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        if self._sizes[id(node)] > NODES:
            _refuse(f"stands for more than {NODES:,} values, its aliases written out", event)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Refuses a key written twice; PyYAML would keep the last one in silence."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                _refuse("a key must be text", key)
            if key.value in seen:
                _refuse(f"key {quoted(key.value)} is given twice", key)
            seen.add(key.value)
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        """Puts the keys of `<<` into a mapping that does not have them; the first source wins.

        PyYAML's own compares keys by identity, so short ones of two sources win or lose by chance.
        """
        pairs: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                for source in value.value if isinstance(value, SequenceNode) else [value]:
                    if not isinstance(source, MappingNode):
                        _refuse("<< takes a section, or a list of sections", source)
                    self.flatten_mapping(source)
                    pairs = {one.value: (one, item) for one, item in source.value} | pairs
        explicit = [pair for pair in node.value if pair[0].tag != f"{TAG}merge"]
        node.value = list((pairs | {key.value: (key, item) for key, item in explicit}).values())


def _apart(value: Any) -> Any:
    """The value without shared parts: PyYAML gives all uses of an alias one dict, and to override a
    key of one stream would change the others too."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def _parts(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _refuse(problem: str, place: Any) -> NoReturn:
    raise ConstructorError(None, None, problem, place.start_mark)


def _scalar(name: str) -> Callable[[_Loader, Node], Any]:
    """SafeLoader's constructor of a scalar, with one exception for all invalid texts."""
    build = getattr(yaml.SafeLoader, f"construct_yaml_{name}")

    def construct(loader: _Loader, node: Node) -> Any:
        try:
            return build(loader, node)
        except (ValueError, KeyError, IndexError):  # ValueError also: more digits than Python reads
            _refuse(f"{quoted(node.value)} is not a valid {name}", node)

    return construct


def _date(loader: _Loader, node: Node) -> NoReturn:
    _refuse(f"{quoted(node.value)} reads as a date; if it is text, put it in quotes", node)


def _unknown(loader: _Loader, node: Node) -> NoReturn:
    _refuse(f"tag {quoted(node.tag)} is not allowed; write it as plain text or number", node)


# ---------------------------------------------------------------------------- the smaller language

for _name in ("null", "bool", "int", "float"):
    _Loader.add_constructor(f"{TAG}{_name}", _scalar(_name))
for _name in ("str", "seq", "map"):
    _Loader.add_constructor(f"{TAG}{_name}", getattr(yaml.SafeLoader, f"construct_yaml_{_name}"))
_Loader.add_constructor(f"{TAG}timestamp", _date)
_Loader.yaml_constructors[None] = _unknown
for _first, _rows in yaml.SafeLoader.yaml_implicit_resolvers.items():
    for _tag, _shape in _rows:
        if _tag.removeprefix(TAG) in ("null", "bool", "merge", "timestamp"):
            _Loader.add_implicit_resolver(_tag, _shape, [_first])
_Loader.add_implicit_resolver(
    f"{TAG}int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    f"{TAG}float",  # as YAML 1.1: 1e-4 is text, which `config_file` reads as a number where it may
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)
