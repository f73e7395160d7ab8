"""Lists a data folder: every file is read, known not to be data, refused, or counted.

Folders in it are walked too, and so are folders that it links to. A file that is a link must stay
in the folder, see `links`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.links import is_inside, link_roots

# what tools leave beside data
NO_DATA = (
    "_success", "_metadata", "_common_metadata", "dataset_info.json", "dataset_infos.json",
    "dataset_dict.json", "state.json", "features.json", "hub.json",
)  # fmt: skip
DOCUMENTS = ("readme", "license", "licence", "changelog", "citation")  # their names begin so
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NAMED = 3  # files that a message names


class Found(NamedTuple):
    """The files of a folder that is walked. Names, as there may be millions: paths take longer."""

    names: list[str]  # from the folder on, in order
    odd: set[str]  # of them, what are no regular files
    notes: list[str]  # what `prepare` says about it


def walk(root: Path, links: Sequence[str] = (), skip: Path | None = None) -> Found:
    """All files of a folder and of its folders, sorted by name: the same on every host.

    Args:
        root: the folder.
        links: folders outside that files may link to.
        skip: a folder in it that holds the images of rows, no data.

    Returns:
        Files, without hidden ones, those in hidden folders (the hub's `.cache`, checkpoints of
        notebooks), images and indexes; with a note for each folder that is a link.

    Raises:
        ConfigError: a folder cannot be read or is met twice, a file's name is not UTF-8, or a link
            leads nowhere or out of the folder.
    """
    return _Walk(root, links, skip).walk()


class _Walk:
    def __init__(self, root: Path, links: Sequence[str], skip: Path | None):
        self._root, self._skip = root, None if skip is None else os.path.realpath(skip)
        self._roots = list(link_roots(root, links))
        self._pending = [""]  # folders, each with its slash
        self._visited: dict[tuple[int, int], str] = {}  # folder by device and inode
        self._links: list[str] = []  # files; where they may lead is known at the end
        self._names: list[str] = []
        self._odd: set[str] = set()
        self._notes: list[str] = []

    def walk(self) -> Found:
        while self._pending:
            self._folder(self._pending.pop())
        for name in self._links:
            file = self._root / name
            require(file.exists(), f"{file}: a link to {os.readlink(file)}, which is not there")
            require(
                is_inside(str(file), self._roots),
                f"{file}: a link out of {self._root}, to {os.path.realpath(file)}; if that is "
                "meant, name the folder it leads to in data.streams.*.links",
            )
        return Found(sorted(self._names, key=lambda name: name.split("/")), self._odd, self._notes)

    def _folder(self, inside: str) -> None:
        folder = self._root / inside
        try:
            stat = folder.stat()
            earlier = self._visited.setdefault((stat.st_dev, stat.st_ino), inside)
            require(
                earlier is inside,
                f"{folder}: the folder {self._root / earlier} again, by a link; its files would be "
                "read twice: remove the link",
            )
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        self._entry(inside, entry)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be listed: {error.strerror}") from error

    def _entry(self, inside: str, entry: os.DirEntry[str]) -> None:
        name, kind = inside + entry.name, os.path.splitext(entry.name)[1].lower()
        if not entry.name.isascii():
            _check_name(self._root / inside, entry.name)
        if not entry.is_dir():
            if kind in IMAGES:  # they may be millions, and are read when a row names them
                return
            self._names.append(name)
            if not entry.is_file():
                self._odd.add(name)
            if entry.is_symlink() and not is_no_data(name):
                self._links.append(name)
        elif kind != ".index" and entry.name != "__pycache__" and not self._is_skip(name):
            if entry.is_symlink():
                self._roots.append(os.path.realpath(self._root / name))
                self._notes.append(f"{self._root / name}: a link, followed to {self._roots[-1]}")
            self._pending.append(f"{name}/")

    def _is_skip(self, name: str) -> bool:
        return self._skip is not None and os.path.realpath(self._root / name) == self._skip


def _check_name(folder: Path, name: str) -> None:
    """Refuses a name that neither messages nor an index can hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        readable = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise ConfigError(
            f"{folder}: the name of the file {readable} is not UTF-8; rename it"
        ) from error


def is_no_data(name: str) -> bool:
    """Whether a file is known to hold no rows, so that nobody misses it."""
    base = name.rpartition("/")[2].lower()
    return base in NO_DATA or base.startswith(DOCUMENTS)


def first_names(names: Sequence[str]) -> str:
    """ "a.csv, sub/b.csv and 7 more"."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
