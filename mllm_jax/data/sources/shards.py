"""The files of a source: one, or the shards of a folder, and which split each belongs to."""

import re
from pathlib import Path

from mllm_jax.errors import require

# train-00000-of-00004.parquet, validation.arrow, data/test/000.tar: as the `datasets` library
# reads names of files and folders (huggingface.co/docs/datasets/repository_structure)
_SPLIT = re.compile(r"(train|valid|validation|val|dev|test|eval)(?=[-._]|$)", re.IGNORECASE)


def split_of(shard: Path) -> str | None:
    """The split that a shard's path in its folder names, the file before its folders."""
    found = (_SPLIT.match(part) for part in reversed(shard.parts))
    return next((match[1].lower() for match in found if match), None)


def find_files(path: str | Path, *suffixes: str) -> list[Path]:
    """The file itself, or the files of a folder and of its folders.

    Args:
        path: a file of any name, or a folder.
        suffixes: what names of files in a folder end with, as ".txt". Hidden files and what lies in
            hidden folders (the hub's `.cache`, checkpoints of notebooks) are left out.

    Returns:
        Paths, sorted by name: the order of the rows, the same on every host.

    Raises:
        ConfigError: there is no such path, or no such file in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    require(path.is_dir(), f"{path}: no such file or folder")
    found = [
        file
        for file in path.rglob("*")
        if file.name.endswith(suffixes)
        and not any(part[0] == "." for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    require(len(found) > 0, f"{path}: no {' or '.join(suffixes)} file in this folder")
    return sorted(found)


def find_shards(path: str | Path, *suffixes: str, split: str | None = None) -> list[Path]:
    """`find_files`, of one split: nobody trains on test data because it lay in the same folder.

    Args:
        path, suffixes: as there.
        split: as names of shards say it, see `split_of`; may be left out where they name one only.

    Raises:
        ConfigError: as there; several splits and none chosen, or none of this name.
    """
    files = find_files(path, *suffixes)
    splits = {file: split_of(file.relative_to(path)) for file in files}
    named = sorted({name for name in splits.values() if name})
    if split is None:
        require(
            len(named) < 2,
            f"{path}: holds shards of {' and '.join(named)}, and a stream reads one split; choose "
            "by data.streams.*.split",
        )
        return files
    chosen = [file for file in files if splits[file] == split]
    there = f"there are {', '.join(named)}" if named else "no name of a shard says its split"
    require(len(chosen) > 0, f"{path}: no shard of split {split!r}; {there}")
    return chosen
