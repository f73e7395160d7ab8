"""Puts a folder back after each test that changes it, which is quicker than a copy for each."""

import os
import shutil
import stat
from pathlib import Path

State = tuple[int, ...]  # of a folder its mode; of a file the rest too, by which a change is seen


class Restored:
    """A copy of a folder; `restore` undoes what was changed in it."""

    def __init__(self, original: Path, folder: Path):
        self.original, self.folder = original, folder
        shutil.copytree(original, folder, symlinks=True)
        self.states = scan(folder)
        # a file that changes within a tick of the clock after it was written may look unchanged
        self.recent = set(self.states)

    def restore(self) -> Path:
        """Makes the folder what it was; gives its path."""
        now, before = scan(self.folder), self.states
        changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
        changed |= {name for name in self.recent - changed if not self._is_original(name)}
        for name in sorted(changed & now.keys(), reverse=True):  # what is in a folder comes first
            if not _is_folder(now[name]):
                (self.folder / name).unlink()
            elif name not in before or not _is_folder(before[name]):
                (self.folder / name).rmdir()
        self.recent = changed & before.keys()
        for name in sorted(self.recent):
            path = self.folder / name
            if _is_folder(before[name]):
                path.mkdir(exist_ok=True)
                path.chmod(stat.S_IMODE(before[name][0]))
            else:
                shutil.copy2(self.original / name, path, follow_symlinks=False)
            before[name] = _state(path.lstat())
        return self.folder

    def _is_original(self, name: str) -> bool:
        """Whether a file holds what it should; of a folder its state says so."""
        here, there = self.folder / name, self.original / name
        if here.is_symlink():
            return here.readlink() == there.readlink()
        return here.is_dir() or here.read_bytes() == there.read_bytes()


def scan(folder: Path, prefix: str = "") -> dict[str, State]:
    """Everything in a folder, by its path from there."""
    states: dict[str, State] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            states[name] = _state(entry.stat(follow_symlinks=False))
            if _is_folder(states[name]):
                states |= scan(Path(entry.path), f"{name}/")
    return states


def _state(of: os.stat_result) -> State:
    if stat.S_ISDIR(of.st_mode):
        return (of.st_mode,)
    return of.st_mode, of.st_ino, of.st_size, of.st_ctime_ns


def _is_folder(state: State) -> bool:
    return len(state) == 1
