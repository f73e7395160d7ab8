"""Finds the split that the name of a file states, by the rule of the `datasets` library.

A split is said by a word of KEYWORDS between the characters `-`, `.`, `_`, space and digits, by the
folders of a file before its own name (huggingface.co/docs/datasets/repository_structure and
src/datasets/data_files.py):

    cc3m-train-0000.tar   eu_dev/7.txt   testing/0.parquet   val2017.parquet   NAME-test.arrow

In a folder `data`, names that count themselves say any split: data/SPLIT-00000-of-00004.parquet.
"""

import re
from pathlib import Path
from typing import NamedTuple

from mllm_jax.common.errors import ConfigError, quoted, require

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ALL = "all"  # every file, whatever its name says
_SPLIT = {word: split for split, synonyms in KEYWORDS.items() for word in synonyms}
_BETWEEN = "[-._ 0-9]"
_WORD = re.compile(rf"(?:^|{_BETWEEN})({'|'.join(_SPLIT)})(?={_BETWEEN}|$)", re.IGNORECASE)
_COUNTED = re.compile(r"(\w+(?:\.\w+)*)-[0-9]{5,}-of-[0-9]{5,}")


class Chosen(NamedTuple):
    """The files of one split."""

    names: list[str]
    others: dict[str, list[str]]  # of another split, or of "no split"


def split_of(name: str) -> str | None:
    """The split that a file's name says, from its data folder on; None if it says none.

    Raises:
        ConfigError: it says several.
    """
    folders, _, base = name.rpartition("/")
    counted = _COUNTED.match(base) if folders == "data" else None
    if counted:
        return _SPLIT.get(counted[1].lower(), counted[1])
    stated = {_SPLIT[word.lower()] for part in folders.split("/") for word in _WORD.findall(part)}
    stated = stated or {_SPLIT[word.lower()] for word in _WORD.findall(base)}
    if len(stated) > 1:
        raise ConfigError(
            f"{name}: its name says the splits {' and '.join(sorted(stated))}; rename it, name the "
            f"file itself as the path, or read every file by data.streams.*.split={ALL}"
        )
    return min(stated, default=None)


def choose(names: list[str], root: Path, split: str | None) -> Chosen:
    """The files of a split: nobody trains on test data because it is in the same folder.

    Args:
        names: of files, from `root` on.
        root: the data folder; its own name says nothing.
        split: one of KEYWORDS or another word for it, a name as in NAME-00000-of-00004, ALL; may be
            left out where all names say the same split, or none does.

    Raises:
        ConfigError: none is chosen and the names say several splits, or some say one and others
            none; or no file is of this split.
    """
    if split == ALL:
        return Chosen(names, {})
    splits = {name: split_of(name) for name in names}
    if split is None:
        _check_one(root, splits)
        return Chosen(names, {})
    label = _SPLIT.get(split.lower(), split)
    chosen = {name for name in names if label in (splits[name], _prefix(name))}
    if not chosen:
        stated = sorted({one for one in splits.values() if one})
        there = f"there are {', '.join(stated)}" if stated else "no name of a file says its split"
        raise ConfigError(f"{root}: no file of split {quoted(split)}; {there}")
    others: dict[str, list[str]] = {}
    for name in names:
        if name not in chosen:
            others.setdefault(splits[name] or "no split", []).append(name)
    return Chosen([name for name in names if name in chosen], dict(sorted(others.items())))


def _check_one(root: Path, splits: dict[str, str | None]) -> None:
    """Refuses what is not clearly one split."""
    first = {split: name for name, split in reversed(splits.items())}
    stated = sorted(split for split in first if split)
    require(
        len(stated) < 2,
        f"{root}: holds files of {' and '.join(stated)}, and a stream reads one split; choose by "
        "data.streams.*.split",
    )
    if stated and None in first:
        raise ConfigError(
            f"{root}: {first[stated[0]]} says that it is of split {stated[0]}, {first[None]} says "
            f"no split; choose by data.streams.*.split: {stated[0]}, or {ALL} for every file"
        )


def _prefix(name: str) -> str | None:
    """ "train_sft" of train_sft-00000-of-00003.parquet."""
    counted = _COUNTED.match(name.rpartition("/")[2])
    return counted[1] if counted else None
