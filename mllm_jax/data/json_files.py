"""JSON (one list) and JSONL (an object a line) -> objects, refused with file and line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm_jax.errors import ConfigError, require


def read_objects(path: Path) -> Iterator[tuple[int | None, Any]]:
    """The objects of a file in order, each with its line where lines tell them apart (.jsonl).

    Raises:
        ConfigError: wrong name, not UTF-8, not JSON (file and line), or no list.
    """
    require(
        path.suffix in (".json", ".jsonl"),
        f"{path}: expected a file named .json (one list) or .jsonl (a record a line)",
    )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text ({error.reason})") from error
    if path.suffix == ".jsonl":
        # not splitlines(): JSON strings may hold U+2028 and others that it takes for ends of lines
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _parse(line, path, number)
        return
    tree = _parse(text, path, 1)
    require(
        isinstance(tree, list), f"{path}: expected a list of records, found {type(tree).__name__}"
    )
    for raw in tree:
        yield None, raw


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = ""
        if path.suffix == ".json" and error.msg == "Extra data":
            hint = "; if every line is a record of its own, name the file .jsonl"
        line = first_line + error.lineno - 1
        raise ConfigError(
            f"{path}:{line}: not JSON: {error.msg} (column {error.colno}){hint}"
        ) from error
    except RecursionError as error:
        raise ConfigError(
            f"{path}:{first_line}: not JSON we can read: nested too deeply"
        ) from error
