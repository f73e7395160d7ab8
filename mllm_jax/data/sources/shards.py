"""Lists the files of a stream: one, or the shards of a folder, of one split and complete."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.data.sources import splits
from mllm_jax.data.sources.folder import first_names, is_no_data, walk

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".lzma", ".br", ".zip", ".7z", ".z")
# 00001-of-00003, before the suffix or behind it; `datasets` adds a digest
_COUNT = re.compile(r"(.*?)([0-9]{1,9})[-_.]of[-_.]([0-9]{1,9})(?:-[0-9a-f]{16})?(?![0-9])(.*)")
_NUMBER = re.compile(r"(.*?)([0-9]{1,9})(\D*)")
_OF = re.compile(r"-[0-9]+-of-[0-9]+$")
_TARS = (".tgz", ".tbz2", ".txz")
_PACKED = (*PACKED, *_TARS)


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
            follow, as in a.array_record-00000-of-00002.
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
            splits.choose([path.name], path.parent, options.split)
        return Listing([path], [])
    require(path.is_dir(), f"{path}: no such file or folder")
    images = options.images if options.images != path else None
    every, odd, notes = walk(path, options.links, images)
    is_ours = _has_suffix(suffixes)
    ours = [name for name in every if is_ours(name)]
    require(len(ours) > 0, f"{path}: no {' or '.join(suffixes)} file in this folder")
    names, others = splits.choose(ours, path, options.split)
    packed = [name for name in names if name.lower().endswith(_PACKED)]
    require(
        not packed,
        f"{path}: {first_names(packed)}: compressed; rows are read by offset, so unpack them",
    )
    odd &= set(names)
    require(not odd, f"{path}: {first_names(sorted(odd))}: not a regular file")
    _check_counts(path, names)
    notes = [*notes, *_gaps(path, names)]
    notes += [f"{path}: not read, of {split}: {first_names(of)}" for split, of in others.items()]
    unknown = [name for name in every if not is_ours(name) and not is_no_data(name)]
    if unknown:
        notes.append(f"{path}: not read, of other kinds: {first_names(unknown)}")
    return Listing([path / name for name in names], notes)


def _has_suffix(suffixes: Sequence[str]) -> Callable[[str], bool]:
    """Whether a file holds rows of a kind, packed or not."""
    ends = (*suffixes, *_TARS) if ".tar" in suffixes else tuple(suffixes)

    def is_ours(name: str) -> bool:
        name = name.lower()
        if name.endswith(ends):
            return True
        for packing in PACKED:
            name = name.removesuffix(packing)
        return name.endswith(ends) or ("-of-" in name and _OF.sub("", name).endswith(ends))

    return is_ours


def _check_counts(folder: Path, names: list[str]) -> None:
    """Of files that count themselves, 00001-of-00003, every one must be there.

    Raises:
        ConfigError: one is missing or there twice, or files of two counts are side by side.
    """
    sets: dict[tuple[str, str], dict[int, dict[int, str]]] = defaultdict(dict)
    for name in names:
        match = _COUNT.fullmatch(name) if "of" in name else None
        if match:
            head, number, total, tail = match.groups()
            shards = sets[head, tail.lower()].setdefault(int(total), {})
            earlier = shards.setdefault(int(number), name)
            require(earlier is name, f"{folder}: {earlier} and {name} are one shard; keep one")
    for (head, _), totals in sets.items():
        if len(totals) > 1:
            some = " and ".join(next(iter(shards.values())) for shards in totals.values())
            raise ConfigError(f"{folder}: {some} are of two sets; keep one, or name a file as path")
        ((total, shards),) = totals.items()
        start = 0 if 0 in shards or total not in shards else 1
        outside = [name for n, name in shards.items() if not start <= n < start + total]
        require(not outside, f"{folder}: {first_names(outside)}: counts beyond its total")
        missing = next(n for n in count(start) if n not in shards)
        like = next(iter(shards.values()))
        width = len(_COUNT.fullmatch(like)[2])  # type: ignore[index]
        require(
            len(shards) == total,
            f"{folder}: {total - len(shards)} of {total} shards {head}... are missing, as number "
            f"{missing:0{width}}, beside {like}; fetch them, or rename the others if that is all",
        )


def _gaps(folder: Path, names: list[str]) -> list[str]:
    """Notes on numbers that are left out, as in 0000.tar 0002.tar; it may be meant."""
    series: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        match = _NUMBER.fullmatch(name)
        if match and not ("of" in name and _COUNT.fullmatch(name)):
            series[match[1], match[3]].append((int(match[2]), name))
    notes = []
    for numbered in series.values():
        numbered.sort()
        numbers = [number for number, _ in numbered]
        missing = numbers[-1] - numbers[0] + 1 - len(set(numbers))
        if 0 < missing < len(numbers):  # more are no series but names
            after = next(a for a, b in pairwise(numbered) if b[0] > a[0] + 1)
            notes.append(f"{folder}: {missing} numbers are missing, the first after {after[1]}")
    return notes
