"""The zip files that `torch.save` writes: which entries there are, and where their bytes begin.

The standard library reads the directory. Entries are not extracted: torch stores them uncompressed,
so their numbers can be read in place.
"""

import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mllm_jax.common.errors import ConfigError, one_line, quoted, require

DIRECTORY_BYTES = 2**24  # of all entries' names and sizes; a storage takes about 90
TAIL_BYTES = 2**17  # the end of the file, which is read to find the directory; 65,557 are enough
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and of extra field
LOCAL_SIGNATURE = b"PK\x03\x04"
ENCRYPTED, UTF8 = 0x1, 0x800  # flags of an entry
PICKLE = "data.pkl"
POINTER = b"version https://git-lfs"
CONVERT = (
    "convert it once with torch: "
    "torch.save(torch.load(FILE, weights_only=True, map_location='cpu'), NEW_FILE)"
)


@contextmanager
def open_zip(path: Path) -> Iterator["TorchZip"]:
    """Opens a file of `torch.save`.

    Raises:
        ConfigError: no such file, no zip file, a truncated one, or not one of `torch.save`.
    """
    require(path.is_file(), f"{path}: no such file")
    with path.open("rb") as file:
        yield TorchZip(path, file)


class TorchZip:
    """An open file of `torch.save`; its entries by their names below the archive's own."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file = path, file
        self._entries = self._directory()
        order = self.read("byteorder", 16) if "byteorder" in self._entries else b"little"
        require(
            order == b"little",
            f"{path}: byteorder {quoted(order)}: numbers must be little-endian; {CONVERT}",
        )

    def place(self, name: str) -> tuple[int, int]:
        """Where the bytes of an entry are: (offset in the file, number of bytes).

        Raises:
            ConfigError: no such entry, one that is compressed, encrypted or not whole.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ConfigError(f"{self.path}: has no entry {quoted(name)}, which its pickle names")
        require(
            entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size,
            f"{self.path}: entry {quoted(name)} is compressed; torch stores entries as they are; "
            f"{CONVERT}",
        )
        require(not entry.flag_bits & ENCRYPTED, f"{self.path}: entry {quoted(name)} is encrypted")
        require(
            0 <= entry.header_offset < self._size(),
            f"{self.path}: entry {quoted(name)} is not where the directory says; damaged",
        )
        self._file.seek(entry.header_offset)
        header = self._file.read(LOCAL_HEADER.size).ljust(LOCAL_HEADER.size, b"\0")
        signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
        local = self._file.read(name_bytes)
        require(
            signature == LOCAL_SIGNATURE and local == _stored_name(entry),
            f"{self.path}: entry {quoted(name)} is not where the directory says; damaged",
        )
        offset = entry.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
        require(
            offset + entry.file_size <= self._size(),
            f"{self.path}: truncated: entry {quoted(name)} ends after the file",
        )
        return offset, entry.file_size

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a small entry, whose checksum is compared if torch wrote one (not 0)."""
        offset, nbytes = self.place(name)
        require(
            nbytes <= limit,
            f"{self.path}: entry {quoted(name)} has {nbytes:,} bytes; {limit:,} are allowed",
        )
        self._file.seek(offset)
        data = self._file.read(nbytes)
        require(
            self._entries[name].CRC in (0, zlib.crc32(data)),
            f"{self.path}: entry {quoted(name)} is damaged (crc32); copy or download it again",
        )
        return data

    def _size(self) -> int:
        return self._file.seek(0, io.SEEK_END)

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        start = self._file.read(64)
        require(start.startswith(LOCAL_SIGNATURE), f"{self.path}: {_other_kind(start)}")
        bounded: Any = _Bounded(self._file)
        try:
            entries = zipfile.ZipFile(bounded).infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise ConfigError(
                f"{self.path}: a truncated or damaged zip file ({self._size()} bytes): "
                f"{one_line(str(error), 80)}; copy or download it again"
            ) from error
        pickles = [e.filename for e in entries if e.filename.split("/")[1:] == [PICKLE]]
        require(
            len(pickles) == 1,
            f"{self.path}: holds {len(pickles)} entries NAME/{PICKLE}; torch.save writes one",
        )
        top = pickles[0].removesuffix(PICKLE)
        names = [entry.filename.removeprefix(top) for entry in entries]
        doubled = next((name for name, times in Counter(names).items() if times > 1), None)
        require(doubled is None, f"{self.path}: holds entry {quoted(doubled)} more than once")
        require(
            "constants.pkl" not in names,
            f"{self.path}: a TorchScript program, which is not read; save its state_dict() instead",
        )
        return dict(zip(names, entries, strict=True))


class _Bounded:
    """A file as the zip library reads it, which believes any size that a directory claims."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if count > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {count:,} bytes")
        return self._file.read(count if count >= 0 else TAIL_BYTES)


def _stored_name(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8 else "cp437")


def _other_kind(start: bytes) -> str:
    """What a file is that is not a zip file, by its first bytes."""
    if start.startswith(POINTER):
        return "a pointer of Git LFS, not the file itself; run git lfs pull in its folder"
    if start[:2] in (b"\x80\x02", b"\x80\x04"):
        return f"written by a torch before 1.6, or by pickle itself; {CONVERT}"
    return (
        f"not a file of torch.save (it begins with {quoted(start[:8])}); copy or download it again"
    )
