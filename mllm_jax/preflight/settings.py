"""When a step does not fit: the settings near the given one, nearest first.

Three kinds of knob change nothing of the result: remat, microbatches (rows in a turn), and how the
mesh is split; the rows of a batch come last, since they do. Near means: few kinds of knob changed,
then small changes (in doublings).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from mllm_jax.preflight.roofline import Split

REMAT = ("none", "dots", "full")  # from most memory to least
MOST_TENSOR = 16  # devices: beyond that a layer's products are too small


class Setting(NamedTuple):
    """The knobs that decide about memory."""

    remat: str
    rows: int
    microbatches: int
    split: Split

    def changed(self, other: "Setting") -> tuple[str, ...]:
        """Which kinds of knob differ."""
        kinds = {
            "remat": self.remat != other.remat,
            "microbatches": self.rows == other.rows and self.microbatches != other.microbatches,
            "mesh": self.split != other.split,
            "rows": self.rows != other.rows,
        }
        return tuple(kind for kind, differs in kinds.items() if differs)

    def flags(self, other: "Setting") -> str:
        """What turns `other` into this one, as the command line writes it."""
        values = {
            "--compute.remat": (self.remat, other.remat),
            "--data.rows": (self.rows, other.rows),
            "--train.microbatches": (self.microbatches, other.microbatches),
            "--mesh.data": (self.split.data, other.split.data),
            "--mesh.fsdp": (self.split.fsdp, other.split.fsdp),
            "--mesh.tensor": (self.split.tensor, other.split.tensor),
        }
        # a mesh is written whole: one of its numbers may stand as "what remains" in the file
        whole = self.split != other.split
        return " ".join(
            f"{flag} {new}"
            for flag, (new, old) in values.items()
            if new != old or (whole and flag.startswith("--mesh"))
        )


def near(given: Setting, devices: int) -> list[Setting]:
    """Settings that may need less memory, nearest first; their rows divide over the devices."""
    found = [
        setting
        for split in _splits(given.split, devices)
        for remat in REMAT[REMAT.index(given.remat) :]
        for rows in _halves(given.rows)
        for setting in _turns(Setting(remat, rows, given.microbatches, split), given.rows)
        if setting != given
    ]
    return sorted(found, key=lambda setting: _distance(setting, given))


def whole_rows(rows: int, microbatches: int, parts: int) -> tuple[int, int]:
    """The nearest (rows, microbatches) that divide over `parts` devices: more rows, fewer turns.

    128 rows in 16 turns, 256 parts -> 256 rows in one turn; 64 parts -> 128 rows in two.
    """
    rows = -(-rows // parts) * parts
    each = rows // parts
    return rows, max(m for m in range(1, microbatches + 1) if each % m == 0)


def _splits(given: Split, devices: int) -> Iterator[Split]:
    yield given
    for tensor in (n for n in range(1, MOST_TENSOR + 1) if devices % n == 0):
        for fsdp in (n for n in range(1, devices + 1) if (devices // tensor) % n == 0):
            split = Split(devices // tensor // fsdp, fsdp, tensor)
            if split != given:
                yield split


def _halves(rows: int) -> Iterator[int]:
    yield rows
    while rows % 2 == 0:
        rows //= 2
        yield rows


def _turns(setting: Setting, rows: int) -> Iterator[Setting]:
    """Any number of microbatches for the same rows; for fewer rows the given number, or one.

    One turn needs no second copy of the gradients to add up in.
    """
    each, rest = divmod(setting.rows, setting.split.data * setting.split.fsdp)
    if rest:
        return
    turns = {setting.microbatches, 1} if setting.rows != rows else set(range(1, each + 1))
    for turn in sorted(turns):
        if each % turn == 0:
            yield setting._replace(microbatches=turn)


def _distance(setting: Setting, given: Setting) -> tuple[int, float, int]:
    changed = setting.changed(given)
    doublings = sum(
        abs(math.log2(new / old))
        for new, old in (
            (setting.rows, given.rows),
            (setting.microbatches, given.microbatches),
            *zip(setting.split, given.split, strict=True),
        )
    )
    doublings += REMAT.index(setting.remat) - REMAT.index(given.remat)
    return len(changed) + ("rows" in changed), doublings, setting.split.tensor
