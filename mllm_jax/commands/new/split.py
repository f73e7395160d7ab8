"""Decides which records are held out: by hashes, so that records added later move no others.

A record with pictures goes where its pictures go, so that none of them is on both sides:

    picture a.png -> hash 0.013 < 1/20    held out, in whatever record it occurs
    picture b.png -> hash 0.721           trained
    a record with both                    left out, and counted

A text-only record goes by the hash of its text. The share that is held out falls in halves as data
grows, so what was trained once is never held out later.
"""

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from mllm_jax.data.records.parse import IMAGE, Record

FEWEST, MOST = 50, 500  # held-out records of a kind in one language
SHARES = (1 / 5, 1 / 10, 1 / 20, *(1 / (20 * 2**n) for n in range(1, 20)))
SCALE = 2**64


class Group(NamedTuple):
    """What of a record decides its side."""

    kind: str  # captions, questions or documents
    language: str
    keys: tuple[int, ...]  # hashes of its pictures, else of its text; in [0, SCALE)
    has_images: bool


def kind_of(record: Record) -> str:
    """captions: a picture, nothing asked; documents: a text; questions: every other one."""
    if not record.turns:
        return "documents"
    asked = [part for turn in record.turns if turn.role != "assistant" for part in turn.parts]
    silent = not any(part is not IMAGE and str(part).strip() for part in asked)
    return "captions" if record.images and len(record.turns) == 2 and silent else "questions"


def group_of(record: Record) -> Group:
    """The group of a record."""
    if record.images:
        # paths as they are written, so that a folder may be moved
        keys = [_digest(x if isinstance(x, bytes) else x.encode()) for x in record.images]
        return Group(kind_of(record), record.language, tuple(dict.fromkeys(keys)), True)
    text = record.text or "\0".join(str(part) for turn in record.turns for part in turn.parts)
    return Group(kind_of(record), record.language, (_digest(text.encode()),), False)


def _digest(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


class Split:
    """The sides of the records of a project."""

    def __init__(self, groups: Iterable[Group]):
        groups = [group for group in groups if group.kind != "documents"]
        counts = Counter((group.kind, group.language) for group in groups)
        self._held: set[int] = set()
        for stratum, count in counts.items():
            keys = sorted({key for g in groups if g[:2] == stratum for key in g.keys})
            below = share(count) * SCALE
            chosen = [key for key in keys if key < below] or keys[: len(keys) > 1]
            self._held.update(chosen)

    def side(self, group: Group) -> str:
        """train, heldout, or both for a record whose pictures are on two sides."""
        if group.kind == "documents":
            return "train"
        held = [key in self._held for key in group.keys]
        return "heldout" if all(held) else "both" if any(held) else "train"


def share(count: int) -> float:
    """The share held out of `count` records: at least FEWEST of them if that is a fifth or less.

    Of the shares from a twentieth down, the largest that gives at most MOST.
    """
    if count * SHARES[2] < FEWEST:
        return next((x for x in (SHARES[2], SHARES[1]) if count * x >= FEWEST), SHARES[0])
    return next(x for x in SHARES[2:] if count * x <= MOST)
