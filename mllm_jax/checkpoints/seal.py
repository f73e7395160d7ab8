"""The seal of a checkpoint: size and crc32 of each of its files, written last, looked at first.

    checkpoints/<step>/seal.json   {"step", "loss", "extra", "files": {path: [bytes, crc32]}}

A checkpoint gets its name when its seal is on the disk, so a folder without one is no checkpoint.
crc32 finds every flipped bit, and reads 2.8 GB a second on one core (sha256: 1.7, blake2b: 0.7).
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mllm_jax.errors import RunError

SEAL, NOTES = "seal.json", "checksums."
# orbax writes these when it renames the folder; nothing reads them
STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")
BLOCK = 2**22  # bytes read at a time
THREADS = 8
WHOLE, MISSING, CUT, CHANGED = range(4)  # what a file can be found as


class DamagedCheckpoint(RunError):
    """A file of a checkpoint is missing, cut or changed; the message names it."""


def note(folder: Path, inside: Path) -> None:
    """Puts the checksums of the files under `inside`, which this process wrote, into `folder`.

    So each process reads its own files again, while they are in its memory; `close` gathers them.
    """
    found = _checksums(folder, _files(inside))
    (folder / f"{NOTES}{inside.name}").write_text(json.dumps(found), encoding="utf-8")


def close(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes the seal of a folder in which nothing is written any more, and all of it to the disk.

    Args:
        folder: of the checkpoint, under its temporary name.
        about: what else stands in the seal: step, loss, extra.
    """
    known: dict[str, list[int]] = {}
    for path in sorted(folder.glob(f"*/{NOTES}*")):
        notes = json.loads(path.read_text(encoding="utf-8"))
        known |= {f"{path.parent.name}/{name}": entry for name, entry in notes.items()}
        path.unlink()
    stamps = [folder / name for name in STAMPS]
    files = [
        path
        for path in _files(folder)
        if path not in stamps and path.relative_to(folder).as_posix() not in known
    ]
    found = known | _checksums(folder, files)
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        json.dump({**about, "files": found}, file)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """What `close` wrote.

    Raises:
        DamagedCheckpoint: the seal is missing or torn.
    """
    path = folder / SEAL
    if not path.is_file():
        raise DamagedCheckpoint(f"{path}: is missing")
    try:
        seal = json.loads(path.read_bytes())
        return seal | {"files": {name: (size, crc) for name, (size, crc) in seal["files"].items()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path}: is torn ({error})") from error


def look(folder: Path, files: Mapping[str, tuple[int, int]], names: Iterable[str]) -> list[int]:
    """WHOLE, MISSING, CUT or CHANGED for each of `names`."""

    def one(name: str) -> int:
        path, (size, crc) = folder / name, files[name]
        if not path.is_file():
            return MISSING
        if path.stat().st_size != size:
            return CUT
        return WHOLE if _crc(path) == crc else CHANGED

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, names))


def words(folder: Path, files: Mapping[str, tuple[int, int]], name: str, found: int) -> str:
    """What is wrong with a file, with its path."""
    path, size = folder / name, files[name][0]
    if found == MISSING:
        return f"{path}: is missing"
    if found == CUT:
        now = path.stat().st_size if path.is_file() else 0
        return f"{path}: has {now} bytes, {size} were saved"
    return f"{path}: holds other bytes than were saved (crc32)"


def verify(folder: Path, item: str = "") -> None:
    """Reads all files of a checkpoint, or of one item of it (`params`), and compares.

    Raises:
        DamagedCheckpoint: names the first file that is not as it was saved.
    """
    files = read(folder)["files"]
    names = [name for name in sorted(files) if name.startswith(item)]
    for name, found in zip(names, look(folder, files, names), strict=True):
        if found != WHOLE:
            raise DamagedCheckpoint(words(folder, files, name, found))


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _checksums(folder: Path, files: list[Path]) -> dict[str, list[int]]:
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda path: [path.stat().st_size, _crc(path, sync=True)], files))
    return {path.relative_to(folder).as_posix(): x for path, x in zip(files, found, strict=True)}


def _crc(path: Path, sync: bool = False) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
