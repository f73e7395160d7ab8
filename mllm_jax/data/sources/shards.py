"""The files of a stream: one, or the shards of a folder, of one split and complete."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

from mllm_jax.data.sources import splits
from mllm_jax.data.sources.folder import first_names, is_no_data, walk
from mllm_jax.errors import require

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".lzma", ".br", ".zip", ".7z", ".z")
# 00001-of-00003, before the suffix or behind it; `datasets` adds a digest
_COUNT = re.compile(r"(.*?)([0-9]{1,9})[-_.]of[-_.]([0-9]{1,9})(?:-[0-9a-f]{16})?(?![0-9])(.*)")
_NUMBER = re.compile(r"(.*?)([0-9]{1,9})(\D*)")


class Options(NamedTuple):
    """What a stream's config says about its folder."""

    split: str | None = None
    links: tuple[str, ...] = ()  # folders outside that links may lead to
    images: Path | None = None  # the folder of its images; no data there


OPTIONS = Options()


class Listing(NamedTuple):
    """The files that a stream reads, in the order of its rows."""

    files: list[Path]
    notes: list[str]  # what of its folder is not read; `prepare` prints it


def list_shards(path: str | Path, suffixes: Sequence[str], options: Options) -> Listing:
    """The file itself, or the files of a folder and of its folders.

    Args:
        path: a file of any name, or a folder.
        suffixes: what names of files in a folder end with, as ".txt", in any case; a count may
            stand behind it, as in a.array_record-00000-of-00002.
        options: see `splits.choose` and `folder.walk`.

    Returns:
        Paths, sorted by name: the order of the rows, the same on every host.

    Raises:
        ConfigError: there is no such path or no such file in it; its splits are unclear; a shard is
            missing or compressed; see `folder.walk`.
    """
    path = Path(path)
    if path.is_file():
        if options.split is not None:
            splits.choose([path], path.parent, options.split)
        return Listing([path], [])
    require(path.is_dir(), f"{path}: no such file or folder")
    images = options.images if options.images != path else None
    every, notes = walk(path, options.links, images)
    ours = [file for file in every if _has_suffix(file, suffixes)]
    require(len(ours) > 0, f"{path}: no {' or '.join(suffixes)} file in this folder")
    files, others = splits.choose(ours, path, options.split)
    packed = [file for file in files if _is_packed(file)]
    require(
        not packed,
        f"{path}: {first_names(packed, path)}: compressed; rows are read by offset, so unpack them",
    )
    for file in files:
        require(file.is_file(), f"{file}: not a regular file")
    _check_counts(files)
    notes += _gaps(files) + [
        f"{path}: not read, of {split}: {first_names(group, path)}"
        for split, group in others.items()
    ]
    unknown = [file for file in every if not _has_suffix(file, suffixes) and not is_no_data(file)]
    if unknown:
        notes.append(f"{path}: not read, of other kinds: {first_names(unknown, path)}")
    return Listing(files, notes)


def _has_suffix(file: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file holds rows of a kind, packed or not."""
    name = re.sub(r"-[0-9]+-of-[0-9]+$", "", file.name.lower())
    for packing in PACKED:
        name = name.removesuffix(packing)
    return name.endswith((*suffixes, *((".tgz", ".tbz2", ".txz") if ".tar" in suffixes else ())))


def _is_packed(file: Path) -> bool:
    return file.name.lower().endswith((*PACKED, ".tgz", ".tbz2", ".txz"))


def _check_counts(files: list[Path]) -> None:
    """Of files that count themselves, 00001-of-00003, every one must be there.

    Raises:
        ConfigError: one is missing or there twice, or files of two counts are side by side.
    """
    sets: dict[tuple[Path, str, str], dict[int, dict[int, Path]]] = defaultdict(dict)
    for file in files:
        if match := _COUNT.fullmatch(file.name):
            head, number, total, tail = match.groups()
            shards = sets[file.parent, head, tail].setdefault(int(total), {})
            earlier = shards.setdefault(int(number), file)
            require(earlier is file, f"{file}: counts itself as {earlier.name} does; keep one")
    for (folder, head, _), totals in sets.items():
        if len(totals) > 1:
            some = " and ".join(next(iter(shards.values())).name for shards in totals.values())
            require(False, f"{folder}: {some} are of two sets; keep one, or name a file as path")
        ((total, shards),) = totals.items()
        start = 0 if 0 in shards or total not in shards else 1
        outside = [file for n, file in shards.items() if not start <= n < start + total]
        require(not outside, f"{folder}: {first_names(outside, folder)}: counts beyond its total")
        missing = next(n for n in count(start) if n not in shards)
        like = next(iter(shards.values())).name
        width = len(_COUNT.fullmatch(like)[2])  # type: ignore[index]
        require(
            len(shards) == total,
            f"{folder}: {total - len(shards)} of {total} shards {head}... are missing, as number "
            f"{missing:0{width}}, beside {like}; fetch them, or rename the others if that is all",
        )


def _gaps(files: list[Path]) -> list[str]:
    """Notes on numbers that are left out, as in 0000.tar 0002.tar; it may be meant."""
    series: dict[tuple[Path, str, str], list[tuple[int, Path]]] = defaultdict(list)
    for file in files:
        if not _COUNT.fullmatch(file.name) and (match := _NUMBER.fullmatch(file.name)):
            series[file.parent, match[1], match[3]].append((int(match[2]), file))
    notes = []
    for numbered in series.values():
        numbered.sort()
        numbers = [number for number, _ in numbered]
        missing = numbers[-1] - numbers[0] + 1 - len(set(numbers))
        if 0 < missing < len(numbers):  # more are no series but names
            after = next(a for a, b in pairwise(numbers) if b > a + 1)
            file = numbered[numbers.index(after)][1]
            notes.append(f"{file.parent}: {missing} numbers are missing, the first after {file}")
    return notes
