"""Folders and files that are made whole or not at all. Ground floor."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mllm_jax.errors import require


def in_use(folder: Path) -> bool:
    """Whether something stands where a new folder is to be made; an empty folder does not."""
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def sync_files(folder: Path) -> None:
    """Returns when every file under `folder` is on the disk."""

    def sync(path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, (path for path in folder.rglob("*") if path.is_file())))


def partial(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside PATH that becomes PATH when the block ends well.

    So PATH is whole, or as it was before: a run may be killed at any moment.
    """
    beside = partial(path)
    with ExitStack() as failed:
        failed.callback(beside.unlink, missing_ok=True)
        yield beside
        os.replace(beside, path)
        failed.pop_all()


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside OUT that becomes OUT when the block ends well.

    It disappears when the block does not.

    Raises:
        ConfigError: OUT exists and is not an empty folder.
    """
    out = Path(out).absolute()
    require(not out.is_file(), f"{out}: is a file; give a folder to make")
    require(not in_use(out), f"{out}: exists and is not empty; remove it or give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.partial-{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
