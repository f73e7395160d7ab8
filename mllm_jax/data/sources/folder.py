"""Lists a data folder: every file is read, known not to be data, refused, or counted.

Folders in it are walked too, and so are folders that it links to. A file that is a link must stay
in the folder, see `links`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mllm_jax.errors import ConfigError, require
from mllm_jax.links import is_inside, link_roots

# what tools leave beside data
NO_DATA = (
    "_success", "_metadata", "_common_metadata", "dataset_info.json", "dataset_infos.json",
    "dataset_dict.json", "state.json", "features.json", "hub.json",
)  # fmt: skip
DOCUMENTS = ("readme", "license", "licence", "changelog", "citation")  # their names begin so
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NAMED = 3  # files that a message names


class Found(NamedTuple):
    """The files of a folder that is walked, in order."""

    files: list[Path]
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
        self._pending = [root]  # folders
        self._visited: dict[tuple[int, int], Path] = {}  # folder by device and inode
        self._links: list[Path] = []  # files; where they may lead is known at the end
        self._files: list[Path] = []
        self._notes: list[str] = []

    def walk(self) -> Found:
        while self._pending:
            self._folder(self._pending.pop())
        for file in self._links:
            require(file.exists(), f"{file}: a link to {os.readlink(file)}, which is not there")
            require(
                is_inside(str(file), self._roots),
                f"{file}: a link out of {self._root}, to {os.path.realpath(file)}; if that is "
                "meant, name the folder it leads to in data.streams.*.links",
            )
        return Found(sorted(self._files), self._notes)

    def _folder(self, folder: Path) -> None:
        try:
            stat = folder.stat()
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be listed: {error.strerror}") from error
        earlier = self._visited.setdefault((stat.st_dev, stat.st_ino), folder)
        require(
            earlier is folder,
            f"{folder}: the folder {earlier} again, by a link; its files would be read twice: "
            "remove the link",
        )
        try:
            entries = sorted(
                (Path(entry.path), entry.is_dir(), entry.is_symlink())
                for entry in os.scandir(folder)
                if not entry.name.startswith(".")
                # images may be millions; they are read when a row names them
                if not entry.name.lower().endswith(IMAGES) or entry.is_dir()
            )
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be listed: {error.strerror}") from error
        for path, is_folder, is_link in entries:
            _check_name(path)
            if not is_folder:
                self._links += [path] if is_link and not is_no_data(path) else []
                self._files.append(path)
            elif path.suffix != ".index" and path.name != "__pycache__" and not self._is_skip(path):
                if is_link:
                    self._roots.append(os.path.realpath(path))
                    self._notes.append(f"{path}: a link, followed to {os.path.realpath(path)}")
                self._pending.append(path)

    def _is_skip(self, folder: Path) -> bool:
        return self._skip is not None and os.path.realpath(folder) == self._skip


def _check_name(path: Path) -> None:
    """Refuses a name that neither messages nor an index can hold."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError as error:
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        raise ConfigError(
            f"{path.parent}: the name of the file {name} is not UTF-8; rename it"
        ) from error


def is_no_data(file: Path) -> bool:
    """Whether a file is known to hold no rows, so that nobody misses it."""
    name = file.name.lower()
    return name in NO_DATA or name.startswith(DOCUMENTS)


def first_names(files: Sequence[Path], root: Path) -> str:
    """ "a.csv, sub/b.csv and 7 more"."""
    names = ", ".join(str(file.relative_to(root)) for file in files[:NAMED])
    return names + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
