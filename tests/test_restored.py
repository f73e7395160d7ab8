"""What a test changed in a folder is undone for the next one, whatever it was."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.restored import Restored


def contents(folder: Path) -> dict[str, object]:
    """Names, modes and bytes."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes(),
        )
        for path in sorted(folder.rglob("*"))
    }


CHANGES = {
    "nothing": lambda _: None,
    "bytes of the same length": lambda f: (f / "a").write_bytes(b"2"),
    "a file removed": lambda f: (f / "b/c").unlink(),
    "a folder removed": lambda f: shutil.rmtree(f / "b"),
    "files and folders added": lambda f: shutil.copytree(f / "b", f / "b/d/e"),
    "a file for a folder": lambda f: (shutil.rmtree(f / "b"), (f / "b").write_bytes(b"1")),
    "a folder for a file": lambda f: ((f / "a").unlink(), shutil.copytree(f / "b", f / "a")),
    "a link for a file": lambda f: ((f / "a").unlink(), (f / "a").symlink_to("b")),
    "another link": lambda f: ((f / "link").unlink(), (f / "link").symlink_to("b")),
    "permissions": lambda f: ((f / "a").chmod(0o400), (f / "b").chmod(0o500)),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Restored:
    original = tmp_path_factory.mktemp("original")
    (original / "b" / "empty").mkdir(parents=True)
    (original / "a").write_bytes(b"1")
    (original / "b" / "c").write_bytes(b"3")
    (original / "link").symlink_to("a")
    return Restored(original, tmp_path_factory.mktemp("copy") / "of")


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_undone(copy: Restored, name: str):
    expected = contents(copy.original)
    for _ in range(2):  # the second time within a tick of the clock
        CHANGES[name](copy.restore())
        assert (contents(copy.folder) != expected) == (name != "nothing")
    copy.restore()
    assert contents(copy.folder) == expected
