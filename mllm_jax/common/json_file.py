"""Reads JSON files with errors that name file and line; writes them atomically and indented."""

import json
import re
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.folders import write_whole

HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a pair, or of a whole one


class NotJSON(ValueError):
    """Text that cannot be read as JSON; `line` is its line number, if known."""

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.reason, self.line = reason, line


def loads(data: str | bytes) -> Any:
    """`json.loads` with one exception for all that can be wrong.

    Raises:
        NotJSON: bad syntax, bytes that are not UTF-8, values nested deeper or integers longer than
            Python reads.
    """
    return _loads(data)


def parse_json(data: str | bytes, location: str | Path, line: int | None = None) -> Any:
    """The value of a JSON file that a person or a tool wrote: `loads`, without duplicate keys and
    without text that cannot be written (JSON may escape half a surrogate pair).

    Args:
        data: the JSON.
        location: of the file, for messages.
        line: the number of the only line, where `data` is one of a JSONL file.

    Raises:
        ConfigError: one line with the place.
    """
    try:
        value = _loads(data, _pairs)
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        place = location if line is None else f"{location}:{line}"
        raise ConfigError(f"{place}: not JSON: a text with half a surrogate pair") from error
    except NotJSON as error:
        number = line or error.line
        place = location if number is None else f"{location}:{number}"
        raise ConfigError(f"{place}: not JSON: {error.reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object of a file.

    Raises:
        ConfigError: the file is missing, not JSON (with its line), or holds no object.
    """
    require(path.is_file(), f"{path}: no such file")
    tree = parse_json(path.read_bytes(), path)
    require(isinstance(tree, dict), f"{path}: expected an object, found {type(tree).__name__}")
    return tree


def write_json(path: Path, tree: dict[str, Any] | list[Any]) -> None:
    """Writes an object or a list, indented, not escaped; the file is complete, or unchanged."""
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text)


def _loads(data: str | bytes, pairs: Any = None) -> Any:
    try:
        # Windows' editors begin a file with a mark that says UTF-8
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise NotJSON(error.msg, error.lineno) from error
    except UnicodeDecodeError as error:
        raise NotJSON(f"not UTF-8 text ({error.reason})") from error
    except RecursionError as error:
        raise NotJSON("nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        if isinstance(error, NotJSON):
            raise
        raise NotJSON("an integer of more digits than can be read") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJSON(f"key {twice[:60]!r} is given twice")
    return tree
