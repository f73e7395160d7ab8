"""Checks that an index on disk is intact and matches the data as it is now.

Speed against certainty, since a run of millions of records has to start in seconds:

    file as it was by size, times and inode     the same; nothing of it is read
    same size and modification time, but        compared whole, up to WHOLE bytes of a stream;
    copied, moved or changed in place           in larger ones BLOCKS blocks are compared
    another modification time                   compared whole
    arrays of the index                         size, and the same blocks

Not detected: a change of a large file between the blocks that leaves size and modification time as
they were, in a copy; a bit that flips between the blocks of a large array.
"""

import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.json_file import read_json, write_json

META = "meta.json"
WHOLE = 2**30  # bytes that are compared whole although size and modification time are the same
BLOCKS, BLOCK = 64, 2**14  # of a larger file, spread evenly from its first byte to its last
_READ = 2**22


def look(file: Path, base: Path) -> dict[str, Any]:
    """What an index records about a file of the data; its path is relative to `base`."""
    return {
        "path": str(file.relative_to(base)),
        **_times(file.stat()),
        "blake2b": file_digest(file),
        "sample": sample(file),
    }


def same_content(one: Any, other: list[dict[str, Any]]) -> bool:
    """Whether two lists of `look`, the first off a disk, are of the same files, touched or not."""

    def content(file: Any) -> Any:
        names = ("path", "size", "blake2b")
        return [file.get(name) for name in names] if isinstance(file, dict) else file

    return isinstance(one, list) and list(map(content, one)) == list(map(content, other))


def content_digest(files: list[dict[str, Any]]) -> str:
    """Of the bytes of all files in their order, from what `look` noted; names do not count."""
    content = [[file["size"], file["blake2b"]] for file in files]
    return blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def changed(known: list[dict[str, Any]], files: Sequence[Path] | None, base: Path) -> str | None:
    """The first file that was added or removed, or whose content changed; None if there is none.

    A new modification time alone does not count.

    Args:
        known: as `look` noted them.
        files: those that the stream would read now, in order; None if only the known ones count.
        base: what the noted paths are relative to.
    """
    paths = [base / was["path"] for was in known]
    if files is not None and list(files) != paths:
        new, gone = set(files) - set(paths), set(paths) - set(files)
        return str(min(new or gone, default="the order of the files"))
    left = WHOLE
    for file, was in zip(paths, known, strict=True):
        try:
            times = _times(file.stat())
        except OSError:
            return str(file)
        if all(was[name] == value for name, value in times.items()):
            continue
        if times["size"] != was["size"]:
            return str(file)
        whole = times["mtime_ns"] != was["mtime_ns"] or times["size"] <= left
        if times["mtime_ns"] == was["mtime_ns"] and whole:
            left -= times["size"]
        if (file_digest(file) != was["blake2b"]) if whole else (sample(file) != was["sample"]):
            return str(file)
    return None


def write_meta(folder: Path, tree: dict[str, Any]) -> None:
    """Writes the meta.json of an index whose arrays are on the disk: `tree`, and what they are."""
    arrays = {
        file.name: {"size": file.stat().st_size, "sample": sample(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != META
    }
    tree = tree | {"arrays": arrays}
    write_json(folder / META, tree | {"blake2b": _tree_digest(tree)})


def read_meta(folder: Path) -> dict[str, Any] | str:
    """The meta.json of an index, or what is wrong with the index."""
    try:
        tree = read_json(folder / META)
        if tree.pop("blake2b", None) != _tree_digest(tree):
            return f"{META} changed"
        for name, was in tree["arrays"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != was["size"]:
                return f"{name} has another size"
            if sample(file) != was["sample"]:
                return f"{name} changed"
    except (ConfigError, OSError) as error:
        return str(error)
    return tree


def file_digest(file: Path) -> str:
    """Of all of a file."""
    digest = blake2b(digest_size=16)
    with file.open("rb") as opened:
        while block := opened.read(_READ):
            interrupts.check()
            digest.update(block)
    return digest.hexdigest()


def sample(file: Path) -> str:
    """A digest of a file, or of BLOCKS blocks of one that has more bytes."""
    digest, size = blake2b(digest_size=16), file.stat().st_size
    last = max(size - BLOCK, 0)
    small = size <= BLOCKS * BLOCK
    starts = range(0, size, BLOCK) if small else (last * n // (BLOCKS - 1) for n in range(BLOCKS))
    with file.open("rb", buffering=0) as opened:
        for start in starts:
            interrupts.check()
            digest.update(os.pread(opened.fileno(), BLOCK, start))
    return digest.hexdigest()


def _times(stat: os.stat_result) -> dict[str, int]:
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _tree_digest(tree: dict[str, Any]) -> str:
    return blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()
