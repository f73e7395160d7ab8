"""Small disks that fill up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of this size, mounted under `folder`. Skips where that needs a right we lack."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    disk = folder / "disk"
    disk.mkdir()
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves 100 kB of a disk."""
    left, filler = os.statvfs(disk), disk / "filler"
    filler.write_bytes(bytes(left.f_bavail * left.f_frsize - 100_000))
    return filler
