"""JSON objects in files: read with errors that name the place, written readably. Ground floor."""

import json
from pathlib import Path
from typing import Any

from mllm_jax.errors import ConfigError, require
from mllm_jax.folders import whole_file


def read_json(path: Path) -> dict[str, Any]:
    """The object of a file.

    Raises:
        ConfigError: the file is missing, no JSON (with its line), or holds no object.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not JSON: not UTF-8 text ({error.reason})") from error
    require(isinstance(tree, dict), f"{path}: expected an object, found {type(tree).__name__}")
    return tree


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Writes an object, indented, letters as they are; the file is whole, or as it was."""
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
