"""Writes folders and files atomically: complete or not at all, by one process at a time.

Everything is written under a temporary name and gets its own at the end:

    OUT    folder   .OUT.partial-<process>/ , while .OUT.lock is held beside it
    FILE   file     .FILE.partial-<token> , itself locked while it is written
    RUN    folder that grows in place (a run, a recipe), while RUN/.lock is held

The next start removes what no living process has locked (`locks`).
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from mllm_jax.common import interrupts
from mllm_jax.common.errors import require
from mllm_jax.common.failures import naming, reason, writable
from mllm_jax.common.locks import claimed, try_lock

LOCK, MARK = ".lock", ".partial"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # of a write, never of a read


def in_use(folder: Path) -> bool:
    """Whether `folder` exists and is not empty.

    A folder that holds only what a killed process left (lock, partial files) counts as empty.
    """
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != LOCK and not _is_temporary(path) for path in folder.iterdir())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{MARK}-{secrets.token_hex(4)}")


def _temporaries(path: Path) -> list[Path]:
    """The names beside a path under which it is being written, or was by a killed process."""
    name = re.compile(rf"\.{re.escape(path.name)}{re.escape(MARK)}(-[0-9a-f]+)*")
    return [path.with_name(x) for x in os.listdir(path.parent) if name.fullmatch(x)]


def _is_temporary(path: Path) -> bool:
    return re.fullmatch(rf"\..*{re.escape(MARK)}(-[0-9a-f]+)*", path.name) is not None


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


# ------------------------------------------------------------------------- folders that grow


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Locks a folder that grows in place; creates it, and removes it again if it stays empty.

    Raises:
        ConfigError: another process works in it, or it cannot be written.
    """
    with ExitStack() as stack:
        with writable(folder):
            require(not folder.is_file(), f"{folder}: is a file; give a folder")
            stack.enter_context(_parents(folder / LOCK))
            if stack.enter_context(claimed(folder / LOCK, folder)):
                for path in folder.iterdir():
                    if _is_temporary(path) and path.is_file():
                        _clear_file(path)
        yield


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Creates the folders above a path; removes those that it created and that stay empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # so mkdir calls a file in the way
        code = errno.ENOTDIR
        raise NotADirectoryError(code, os.strerror(code), error.filename) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: something was made there
            for folder in missing:
                folder.rmdir()


# ------------------------------------------------------------------------------------------ folders


def check_new(out: str | Path) -> Path:
    """Where the new folder OUT will be: links are followed.

    Raises:
        ConfigError: it is a file, not empty, or in a place that cannot be written.
    """
    with writable(out):
        target = Path(os.path.realpath(out))
        require(not target.exists() or target.is_dir(), f"{out}: is a file; give a folder to make")
        require(
            not target.is_dir() or not any(target.iterdir()),
            f"{out}: exists and is not empty; remove it or give another folder",
        )
    return target


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside OUT that becomes OUT when the block ends well.

    It disappears when the block does not; what killed processes left is cleared first. An OUT that
    links to an empty folder, or to nothing yet, stays a link.

    Raises:
        ConfigError: OUT exists and is not an empty folder, cannot be written, or is being made by
            another process.
    """
    target = check_new(out)
    with ExitStack() as stack:
        with writable(out):
            stack.enter_context(_parents(target))
            lock = target.with_name(f".{target.name}{LOCK}")
            if stack.enter_context(claimed(lock, out)):
                _clear(target)
            check_new(out)  # another process may just have made it
            if target.is_dir():
                _can_be_replaced(target)
            temporary = _new_temporary(target)
        clear = partial(shutil.rmtree, temporary, ignore_errors=True)
        stack.callback(clear)
        stack.enter_context(interrupts.undoing(clear))
        stack.enter_context(_called(temporary, out))
        yield temporary
        interrupts.check()
        temporary.rename(target)


def _new_temporary(target: Path) -> Path:
    """Named by the process, for who looks; a token more where another container has that number."""
    temporary = target.with_name(f".{target.name}{MARK}-{os.getpid()}")
    try:
        temporary.mkdir()
    except FileExistsError:
        temporary = _temporary(target)
        temporary.mkdir()
    return temporary


def _can_be_replaced(folder: Path) -> None:
    """Raises OSError for an empty folder that cannot be: one on which a disk is mounted, say."""
    mode = folder.stat().st_mode
    folder.rmdir()
    folder.mkdir(mode & 0o7777)


def _clear(target: Path) -> None:
    """Removes what killed processes left of TARGET, whose lock this process holds."""
    for path in _temporaries(target):
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:  # another user's
            print(f"mllm-jax: {path}: not cleared away: {reason(error)}", file=sys.stderr)


@contextmanager
def _called(temporary: Path, out: str | Path) -> Iterator[None]:
    """Replaces the temporary name in errors by the name that the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:  # of a copy's two names, the one that is written
            error.filename = error.filename2 or error.filename
        if error.filename is None and error.errno in _NO_ROOM:
            error.filename = str(out)
        elif error.filename is not None:
            error.filename = str(error.filename).replace(str(temporary), str(out))
        raise


# -------------------------------------------------------------------------------------------- files


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside PATH that becomes PATH when the block ends well.

    So PATH is complete, or unchanged: a run may be killed at any moment. A link is kept, and its
    target replaced. What is not a regular file (/dev/stdout, a pipe) is written into.

    Raises:
        ConfigError: PATH is a folder.
    """
    require(not path.is_dir(), f"{path}: is a folder; give a file to write")
    target = Path(os.path.realpath(path))
    number = _descriptor(path)
    if number is not None or (target.exists() and not target.is_file()):
        with tempfile.TemporaryDirectory() as folder, _called(Path(folder), path):
            yield Path(folder) / path.name
            _pour(Path(folder) / path.name, path, number)
        return
    with naming(path), ExitStack() as stack:
        for other in _temporaries(target):
            _clear_file(other)
        beside, file = _new_file(target)
        stack.callback(os.close, file)
        undo = partial(beside.unlink, missing_ok=True)
        with ExitStack() as failed, interrupts.undoing(undo), _called(beside, path):
            failed.callback(undo)
            yield beside
            os.replace(beside, target)
            failed.pop_all()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file as UTF-8; it is complete or as before, see `whole_file`."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def check_file(path: str | Path) -> None:
    """Checks that a file can be written, before the work whose result it gets.

    Raises:
        ConfigError: it is a folder, or cannot be written.
    """
    path = Path(path)
    with writable(path):
        require(not path.is_dir(), f"{path}: is a folder; give a file to write")
        target = Path(os.path.realpath(path))
        if _descriptor(path) is None and (target.is_file() or not target.exists()):
            beside, file = _new_file(target)
            beside.unlink()
            os.close(file)


def _new_file(target: Path) -> tuple[Path, int]:
    """A new temporary file, locked while its descriptor is open."""
    while True:
        beside = _temporary(target)
        file = try_lock(beside, os.O_CREAT | os.O_EXCL)
        if file is not None:  # otherwise another start has just taken it for a dead one's
            return beside, file[0]


def _clear_file(path: Path) -> None:
    """Removes a temporary file, if its process is gone."""
    with contextlib.suppress(FileNotFoundError, PermissionError):  # gone already, another user's
        if (file := try_lock(path, 0)) is not None:
            if file[1]:
                path.unlink(missing_ok=True)
            os.close(file[0])


def _descriptor(path: Path) -> int | None:
    """The open descriptor that a path names (/dev/stdout, /dev/fd/3, a link to one), if any."""
    descriptors = os.path.realpath("/proc/self/fd")
    for _ in range(40):  # as many links as the kernel follows
        folder = os.path.realpath(path.parent)
        if folder == descriptors and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, os.readlink(path))
    return None


def _pour(source: Path, path: Path, number: int | None) -> None:
    """Writes a file's content into what is open, or is not a regular file."""
    sys.stdout.flush()  # what was printed before comes before
    with source.open("rb") as file, open(path if number is None else os.dup(number), "wb") as sink:
        shutil.copyfileobj(file, sink)
