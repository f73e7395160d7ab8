"""Locks files with flock(2): a lock ends with its process, also by SIGKILL.

So a file that nobody has locked belongs to a process that has ended. Between hosts this works on
NFS, GPFS, and Lustre mounted with `flock`. On a file system without locks a warning is printed,
two starts at once are not detected, and files of a killed process are not removed.
"""

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mllm_jax.common import interrupts
from mllm_jax.common.errors import require
from mllm_jax.common.failures import reason

WAIT = 2.0  # seconds in which the system releases the locks of a killed process
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def claimed(lock: Path, name: str | Path, wait: float = WAIT) -> Iterator[bool]:
    """Holds a lock file, which is removed afterwards.

    Args:
        lock: the file.
        name: what it protects, for the message.
        wait: seconds to wait for another process; long waits are reported.

    Yields:
        Whether it is held; False on a file system without locks.

    Raises:
        ConfigError: another process holds it.
    """
    start, file, told = time.monotonic(), None, False
    while file is None:
        file = try_lock(lock)
        if file is None:
            if time.monotonic() > start + WAIT < start + wait and not told:
                print(f"{name}: another mllm-jax process works in it; waiting", file=sys.stderr)
                told = True
            require(
                time.monotonic() < start + wait,
                f"{name}: in use by another mllm-jax process; wait for it, or give another folder",
            )
            interrupts.check()
            time.sleep(0.05)
    number, locked = file
    try:
        yield locked
    finally:
        lock.unlink(
            missing_ok=True
        )  # while it is held: who has opened it looks whether it is there
        os.close(number)


@contextmanager
def claiming(lock: Path) -> Iterator[bool]:
    """Holds a lock file, which is removed afterwards, unless another process does.

    Yields:
        Whether this process may work on what it stands for. On a file system without locks it
        always may, and a warning is printed.
    """
    file = try_lock(lock)
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)  # while it is held, see `claimed`
        os.close(file[0])


def try_lock(path: Path, flags: int = os.O_CREAT) -> tuple[int, bool] | None:
    """Opens a file and locks it.

    Returns:
        Its descriptor, to be closed, and whether it is locked; None while another process holds it.
    """
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
    with ExitStack() as unless:
        unless.callback(os.close, number)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _say_no_locks(path, error)
            locked = False
        if not _is_at(number, path):  # its holder removed it in between
            return None
        unless.pop_all()
    return number, locked


def _say_no_locks(path: Path, error: OSError) -> None:
    message = (
        f"{path.parent}: no locks on this file system ({reason(error)}); start one run at a time"
    )
    print(f"mllm-jax: {message}", file=sys.stderr)


def _is_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False
