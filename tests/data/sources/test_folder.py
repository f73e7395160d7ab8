"""A data folder: what is in it is read, refused or said, links and odd names included."""

import os
from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.sources.folder import walk


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(root: Path, *links: str, skip: Path | None = None) -> list[str]:
    return walk(root, links, skip).names


def test_folders_are_walked_but_for_hidden_ones_indexes_and_images(tmp_path):
    root = touch(
        tmp_path, "b.txt", "a/z.txt", ".x", ".git/y.txt", "b.index/k/m.jsonl", "im/1.txt",
        "a/im/2.txt", "__pycache__/a.pyc", "1.png", "2.JPG", "c.png/d.txt",
    )  # fmt: skip
    assert names(root, skip=root / "im") == ["a/im/2.txt", "a/z.txt", "b.txt", "c.png/d.txt"]
    assert walk(root).notes == []


def test_a_linked_folder_is_followed_and_said(tmp_path):
    root = touch(tmp_path / "d", "a.txt")
    other = touch(tmp_path / "other", "b.txt")
    (root / "disk2").symlink_to(other)
    found = walk(root)
    assert found.names == ["a.txt", "disk2/b.txt"]
    assert found.notes == [f"{root / 'disk2'}: a link, followed to {other}"]


def test_a_folder_that_is_met_twice_is_refused(tmp_path):
    root = touch(tmp_path / "d", "a/a.txt")
    (root / "loop").symlink_to(root)
    with pytest.raises(ConfigError, match=r"loop: the folder .*d again, by a link; its files"):
        walk(root)
    (root / "loop").unlink()
    (root / "b").symlink_to("a")
    with pytest.raises(ConfigError, match=r"by a link; its files would be read twice"):
        walk(root)


def test_links_of_files_stay_in_the_folder_or_where_the_config_says(tmp_path):
    root = touch(tmp_path / "d", "a.txt", "sub/b.txt")
    secret = touch(tmp_path / "other", "secret.txt") / "secret.txt"
    (root / "c.txt").symlink_to("sub/b.txt")
    assert names(root) == ["a.txt", "c.txt", "sub/b.txt"]
    (root / "d.txt").symlink_to(secret)
    with pytest.raises(ConfigError, match=r"d\.txt: a link out of .*d, to .*secret\.txt; .*links$"):
        walk(root)
    assert "d.txt" in names(root, str(tmp_path / "other"))
    secret.unlink()
    with pytest.raises(ConfigError, match=r"d\.txt: a link to .*secret\.txt, which is not there"):
        walk(root, [str(tmp_path / "other")])


def test_the_hub_cache_is_read_through_its_links(tmp_path):
    cache = touch(tmp_path / "datasets--org--name", "blobs/0a1b")
    revision = cache / "snapshots" / "c0ffee"
    revision.mkdir(parents=True)
    (revision / "a.txt").symlink_to("../../blobs/0a1b")
    assert names(revision) == ["a.txt"]
    (tmp_path / "mine").symlink_to(revision)
    assert names(tmp_path / "mine") == ["a.txt"]
    touch(tmp_path, "other")
    (revision / "b.txt").symlink_to("../../../other")
    with pytest.raises(ConfigError, match=r"b\.txt: a link out of"):
        walk(revision)


def test_names_that_are_not_utf8_are_refused_in_one_line(tmp_path):
    os.close(os.open(os.fsencode(tmp_path) + b"/a\xf1o.txt", os.O_CREAT))
    with pytest.raises(ConfigError) as error:
        walk(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: the name of the file a\\xf1o.txt is not UTF-8; rename it"
    )


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    root = touch(tmp_path, "a/b.txt")
    scandir = os.scandir

    def denied(folder):
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ConfigError, match=r"a: cannot be listed: Permission denied"):
        walk(root)
