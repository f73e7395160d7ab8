"""The zip files of torch.save: what is stored where; every damaged or foreign one refused."""

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm_jax.checkpoints.hf import torch_zip
from mllm_jax.checkpoints.hf.torch_zip import open_zip
from mllm_jax.common.errors import ConfigError
from tests.support.torch_files import NAME, write_file

PICKLE, STORAGE = b"N." * 20, bytes(range(100))


def archive(path: Path) -> Path:
    return write_file(path, PICKLE, {"0": STORAGE}, byteorder=b"little", version=b"3\n")


def test_places(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.bin")
    with open_zip(path) as opened:
        offset, size = opened.place("data/0")
        assert path.read_bytes()[offset : offset + size] == STORAGE
        assert opened.read("data.pkl", 100) == PICKLE
        with pytest.raises(ConfigError, match="has 40 bytes; 39 are allowed"):
            opened.read("data.pkl", 39)
        with pytest.raises(ConfigError, match="has no entry 'data/1', which its pickle names"):
            opened.place("data/1")


def packed(method: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr(f"{NAME}/data.pkl", PICKLE)
            file.writestr(f"{NAME}/data/0", STORAGE * 100)

    return make


def named(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
            warnings.simplefilter("ignore")  # of the library: a name twice
            for number, name in enumerate(names):
                file.writestr(name, PICKLE + bytes([number]))

    return make


def edited(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    """A good file with its bytes changed."""

    def make(path: Path) -> None:
        content = bytearray(archive(path).read_bytes())
        change(content)
        path.write_bytes(content)

    return make


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def central(content: bytearray, entry: str, field: int, layout: str, number: int) -> None:
    """Changes a field of an entry's record in the central directory."""
    start = content.rindex(f"{NAME}/{entry}".encode()) - 46
    struct.pack_into(layout, content, start + field, number)


def local(content: bytearray, entry: str) -> int:
    return content.index(f"{NAME}/{entry}".encode()) - 30


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty file": (written(b""), "begins with b''"),
    "text": (written(b"<!DOCTYPE html>"), "not a file of torch.save"),
    "a pointer of Git LFS": (
        written(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "a pointer of Git LFS, not the file itself",
    ),
    "a pickle": (written(b"\x80\x02N."), "written by a torch before 1.6, or by pickle itself"),
    "safetensors": (written(b"\x08\0\0\0\0\0\0\0{}      "), "not a file of torch.save"),
    "half a file": (lambda p: p.write_bytes(archive(p).read_bytes()[:200]), "truncated or damaged"),
    "a byte too few": (edited(lambda c: c.pop()), "truncated or damaged"),
    "the start alone": (written(b"PK\x03\x04"), "truncated or damaged"),
    "an empty zip file": (written(b"PK\x05\x06" + bytes(18)), "not a file of torch.save"),
    "another zip file": (named("word/document.xml"), "holds 0 entries NAME/data.pkl"),
    "a pickle without a folder": (named("data.pkl"), "holds 0 entries NAME/data.pkl"),
    "two archives": (named("a/data.pkl", "b/data.pkl"), "holds 2 entries NAME/data.pkl"),
    "a pickle twice": (named("a/data.pkl", "a/data.pkl"), "holds 2 entries NAME/data.pkl"),
    "a storage twice": (
        named("a/data.pkl", "a/data/0", "a/data/0"),
        "holds entry 'data/0' more than once",
    ),
    "a storage under two names": (
        named("a/data.pkl", "a/data/0", "data/0"),
        "holds entry 'data/0' more than once",
    ),
    "TorchScript": (named("a/data.pkl", "a/constants.pkl"), "a TorchScript program"),
    "deflated": (packed(zipfile.ZIP_DEFLATED), "is compressed"),
    "bzip2": (packed(zipfile.ZIP_BZIP2), "is compressed"),
    "encrypted": (
        edited(lambda c: central(c, "data/0", 8, "<H", 1)),
        "'data/0' is encrypted",
    ),
    "sizes that differ": (
        edited(lambda c: central(c, "data/0", 20, "<I", 50)),
        "is compressed",
    ),
    "a size beyond the end": (
        edited(
            lambda c: (central(c, "data/0", 20, "<I", 9999), central(c, "data/0", 24, "<I", 9999))
        ),
        "'data/0' ends after the file",
    ),
    "an offset beyond the end": (
        edited(lambda c: central(c, "data/0", 42, "<I", 10**6)),
        "is not where the directory says",
    ),
    "an offset before the start": (
        edited(lambda c: c.pop(c.index(PICKLE))),  # all that follows is a byte nearer to it
        "'data.pkl' is not where the directory says",
    ),
    "an offset at another entry": (
        edited(lambda c: central(c, "data/0", 42, "<I", 0)),
        "is not where the directory says",
    ),
    "another name in the file": (
        edited(lambda c: c.__setitem__(local(c, "data/0") + 37, 0x31)),
        "is not where the directory says",
    ),
    "a pickle that was changed": (
        edited(lambda c: c.__setitem__(c.index(PICKLE), 0x4E ^ 0xFF)),
        "'data.pkl' is damaged",
    ),
    "a directory of 2 GB": (
        edited(lambda c: struct.pack_into("<I", c, len(c) - 10, 2**31)),
        "truncated or damaged",
    ),
    "a newer zip": (
        edited(lambda c: central(c, "data/0", 6, "<H", 99)),
        "zip file version 9.9",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    path = tmp_path / "a.bin"
    make(path)

    def read() -> None:
        with open_zip(path) as opened:
            opened.read("data.pkl", 1000)
            opened.place("data/0")

    with pytest.raises(ConfigError) as caught:
        read()
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("order", [b"big", b"", b"little\n", b"l" * 17])
def test_other_byte_orders(order: bytes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.bin", PICKLE, byteorder=order)
    with pytest.raises(ConfigError, match="byteorder"), open_zip(path):
        pass


def test_large_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_zip, "DIRECTORY_BYTES", 200)
    path = archive(tmp_path / "a.bin")
    with pytest.raises(ConfigError, match="a directory of"), open_zip(path):
        pass


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "a.bin", tmp_path):
        with pytest.raises(ConfigError, match="no such file"), open_zip(path):
            pass
