"""Which split the name of a file says, by the rule of the `datasets` library.

A split is said by a word of KEYWORDS between the characters `-`, `.`, `_`, space and digits, by the
folders of a file before its own name (huggingface.co/docs/datasets/repository_structure and
src/datasets/data_files.py):

    cc3m-train-0000.tar   eu_dev/7.txt   testing/0.parquet   val2017.parquet   NAME-test.arrow

In a folder `data`, names that count themselves say any split: data/SPLIT-00000-of-00004.parquet.
"""

import re
from pathlib import Path
from typing import NamedTuple

from mllm_jax.errors import ConfigError, require

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ALL = "all"  # every file, whatever its name says
_SPLIT = {word: split for split, words in KEYWORDS.items() for word in words}
_BETWEEN = "[-._ 0-9]"
_WORD = re.compile(rf"(?:^|{_BETWEEN})({'|'.join(_SPLIT)})(?={_BETWEEN}|$)", re.IGNORECASE)
_COUNTED = re.compile(r"(\w+(?:\.\w+)*)-[0-9]{5,}-of-[0-9]{5,}")


class Chosen(NamedTuple):
    """The files of one split."""

    files: list[Path]
    others: dict[str, list[Path]]  # of another split, or of "no split"


def split_of(file: Path) -> str | None:
    """The split that a path says, relative to its data folder; None if it says none.

    Raises:
        ConfigError: it says several.
    """
    counted = _COUNTED.match(file.name)
    if counted and file.parts[:-1] == ("data",):
        return _SPLIT.get(counted[1].lower(), counted[1])
    splits = {_SPLIT[word.lower()] for part in file.parts[:-1] for word in _WORD.findall(part)}
    splits = splits or {_SPLIT[word.lower()] for word in _WORD.findall(file.name)}
    require(
        len(splits) < 2,
        f"{file}: its name says the splits {' and '.join(sorted(splits))}; rename it, name the "
        f"file itself as the path, or read every file by data.streams.*.split={ALL}",
    )
    return min(splits, default=None)


def choose(files: list[Path], root: Path, split: str | None) -> Chosen:
    """The files of a split: nobody trains on test data because it is in the same folder.

    Args:
        files: under `root`.
        root: the data folder; its own name says nothing.
        split: one of KEYWORDS or another word for it, a name as in NAME-00000-of-00004, ALL; may be
            left out where all names say the same split, or none does.

    Raises:
        ConfigError: none is chosen and the names say several splits, or some say one and others
            none; or no file is of this split.
    """
    if split == ALL:
        return Chosen(files, {})
    splits = {file: split_of(file.relative_to(root)) for file in files}
    if split is None:
        _check_one(root, splits)
        return Chosen(files, {})
    label = _SPLIT.get(split.lower(), split)
    chosen = [file for file in files if label in (splits[file], _name(file))]
    if not chosen:
        said = sorted({name for name in splits.values() if name})
        there = f"there are {', '.join(said)}" if said else "no name of a file says its split"
        raise ConfigError(f"{root}: no file of split {split!r}; {there}")
    others: dict[str, list[Path]] = {}
    for file in sorted(set(files) - set(chosen)):
        others.setdefault(splits[file] or "no split", []).append(file)
    return Chosen(chosen, dict(sorted(others.items())))


def _check_one(root: Path, splits: dict[Path, str | None]) -> None:
    """Refuses what is not clearly one split."""
    first = {name: file for file, name in reversed(splits.items())}
    said = sorted(name for name in first if name)
    require(
        len(said) < 2,
        f"{root}: holds files of {' and '.join(said)}, and a stream reads one split; choose by "
        "data.streams.*.split",
    )
    if said and None in first:
        named, unnamed = (first[name].relative_to(root) for name in (said[0], None))
        raise ConfigError(
            f"{root}: {named} says that it is of split {said[0]}, {unnamed} says no split; choose "
            f"by data.streams.*.split: {said[0]}, or {ALL} for every file"
        )


def _name(file: Path) -> str | None:
    """ "train_sft" of train_sft-00000-of-00003.parquet."""
    counted = _COUNTED.match(file.name)
    return counted[1] if counted else None
