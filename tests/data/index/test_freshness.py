"""What is noticed of changed files and damaged arrays, and what is not even read."""

import os
import shutil
from pathlib import Path

import pytest

from mllm_jax.data.index import freshness
from mllm_jax.data.index.freshness import (
    changed,
    content_digest,
    look,
    read_meta,
    same_content,
    write_meta,
)

LARGE = freshness.BLOCKS * freshness.BLOCK + 10**6


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def edit(path: Path, at: int) -> None:
    """One byte, in place; size and modification time stay."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"?")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def digested(monkeypatch) -> list[str]:
    """What was asked for since: "whole" or "sample"."""
    asked: list[str] = []
    for name, kind in (("file_digest", "whole"), ("sample", "sample")):
        old = getattr(freshness, name)
        monkeypatch.setattr(freshness, name, lambda f, o=old, k=kind: (asked.append(k), o(f))[1])
    return asked


def test_a_file_as_it_was_is_not_read(tmp_path, digested):
    file = write(tmp_path / "a", b"kaixo")
    known = [look(file, tmp_path)]
    digested.clear()
    assert changed(known, [file], tmp_path) is None and digested == []


def test_a_touched_or_copied_file_is_the_same(tmp_path, digested):
    file = write(tmp_path / "a", b"x" * LARGE)
    known = [look(file, tmp_path)]
    digested.clear()
    os.utime(file, ns=(1, 1))
    assert changed(known, [file], tmp_path) is None and digested == ["whole"]
    known = [look(file, tmp_path)]
    (tmp_path / "copy").mkdir()
    copy = Path(shutil.copy2(file, tmp_path / "copy" / "a"))
    assert changed(known, [copy], tmp_path / "copy") is None


@pytest.mark.parametrize("size", [1, 1000, LARGE])
def test_an_edit_at_equal_size_and_time_is_noticed(tmp_path, size):
    file = write(tmp_path / "a", b"x" * size)
    known = [look(file, tmp_path)]
    edit(file, size // 3)
    assert changed(known, [file], tmp_path) == str(file)


def test_above_a_limit_blocks_are_compared(tmp_path, monkeypatch, digested):
    file = write(tmp_path / "a", b"x" * LARGE)
    small = write(tmp_path / "b", b"x" * 1000)
    known = [look(file, tmp_path), look(small, tmp_path)]
    monkeypatch.setattr(freshness, "WHOLE", 1000)
    edit(file, LARGE - 1)
    assert changed(known, [file, small], tmp_path) == str(file)
    edit(file, 0)
    assert changed(known, [file, small], tmp_path) == str(file)
    file.write_bytes(b"x" * LARGE)
    os.utime(file, ns=(known[0]["mtime_ns"],) * 2)
    edit(small, 7)
    digested.clear()
    assert changed(known, [file, small], tmp_path) == str(small)
    assert digested == ["sample", "whole"]


def test_the_limit_is_that_of_all_files_together(tmp_path, monkeypatch, digested):
    files = [write(tmp_path / name, b"x" * 1000) for name in "abc"]
    known = [look(file, tmp_path) for file in files]
    (tmp_path / "copy").mkdir()
    copies = [Path(shutil.copy2(file, tmp_path / "copy" / file.name)) for file in files]
    monkeypatch.setattr(freshness, "WHOLE", 2000)
    digested.clear()
    assert changed(known, copies, tmp_path / "copy") is None
    assert digested == ["whole", "whole", "sample"]


def test_all_that_tells_a_file_is_noted(tmp_path):
    file = write(tmp_path / "a", b"kaixo")
    noted, stat = look(file, tmp_path), file.stat()
    assert (noted["path"], noted["size"], noted["inode"]) == ("a", 5, stat.st_ino)
    assert (noted["mtime_ns"], noted["ctime_ns"]) == (stat.st_mtime_ns, stat.st_ctime_ns)


def test_content_is_that_of_the_bytes(tmp_path):
    """A touched file has the same, one of equal length another; the digest does not see names."""
    file = write(tmp_path / "a", b"kaixo")
    before = [look(file, tmp_path)]
    os.utime(file, ns=(1, 1))
    touched = [look(write(tmp_path / "b", b"kaixo"), tmp_path)]
    assert same_content(before, [look(file, tmp_path)]) and not same_content(before, touched)
    assert content_digest(before) == content_digest(touched)
    other = [look(write(file, b"agur!"), tmp_path)]
    assert not same_content(before, other) and content_digest(before) != content_digest(other)


def test_a_file_of_another_size_is_not_read(tmp_path, digested):
    file = write(tmp_path / "a", b"kaixo")
    known = [look(file, tmp_path)]
    digested.clear()
    for data in (b"kaixo!", b"kaix"):
        assert changed(known, [write(file, data)], tmp_path) == str(file)
    assert digested == []


def test_files_that_are_new_gone_or_in_another_order(tmp_path):
    a, b = write(tmp_path / "a", b"1"), write(tmp_path / "b", b"2")
    known = [look(a, tmp_path), look(b, tmp_path)]
    assert changed(known, [a, b, tmp_path / "c"], tmp_path) == str(tmp_path / "c")
    assert changed(known, [a], tmp_path) == str(b)
    assert changed(known, [b, a], tmp_path) == "the order of the files"
    b.unlink()
    assert changed(known, None, tmp_path) == str(b)


def test_arrays_are_compared_with_their_sizes_and_blocks(tmp_path):
    arrays = [write(tmp_path / name, b"x" * LARGE) for name in ("tokens.bin", "records.npy")]
    write_meta(tmp_path, {"key": {"a": 1}})
    meta = read_meta(tmp_path)
    assert isinstance(meta, dict) and meta["key"] == {"a": 1}
    edit(arrays[0], 0)
    assert read_meta(tmp_path) == "tokens.bin changed"
    write(arrays[0], b"x" * (LARGE - 1))
    assert read_meta(tmp_path) == "tokens.bin has another size"
    arrays[0].unlink()
    assert read_meta(tmp_path) == "tokens.bin is missing"
    for text in ("", "[]", "{}", "{", '{"arrays": 3}', '{"blake2b": null}'):
        (tmp_path / "meta.json").write_text(text)
        assert isinstance(read_meta(tmp_path), str)
