"""Lists the settings near one: what may fit where it does not, what may be quicker where it does.

Three kinds of option do not change the result: remat, microbatches, and how the mesh is split; the
rows of a batch come last, since they do. Near means: few kinds of option changed, then small
changes (in doublings).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from mllm_jax.preflight.roofline import Split

REMAT = ("none", "dots", "attention", "full", "offload")  # from most memory to least
MOST_TENSOR = 16  # devices: beyond that a layer's products are too small


class Setting(NamedTuple):
    """The options that decide about memory."""

    remat: str
    rows: int
    microbatches: int
    split: Split

    def changed(self, other: "Setting") -> tuple[str, ...]:
        """Which kinds of option differ."""
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
        if self.split.context > 1 or other.split.context > 1:
            values["--mesh.context"] = self.split.context, other.split.context
        # a mesh is written completely: one of its numbers may be -1, what remains, in the file
        whole = self.split != other.split
        return " ".join(
            f"{flag} {new}"
            for flag, (new, old) in values.items()
            if new != old or (whole and flag.startswith("--mesh"))
        )


def near(base: Setting, devices: int) -> list[Setting]:
    """Settings that may need less memory, nearest first; their rows divide over the devices."""
    settings = [
        setting
        for split in _splits(base.split, devices)
        for remat in REMAT[REMAT.index(base.remat) :]
        for rows in _halves(base.rows)
        for setting in _microbatches(Setting(remat, rows, base.microbatches, split), base.rows)
        if setting != base
    ]
    return sorted(settings, key=lambda setting: _distance(setting, base))


def quicker(base: Setting) -> list[Setting]:
    """The same rows and mesh with any remat and microbatches, so that the result is the same.

    Less remat computes less, fewer microbatches gather the weights less often, and more of them
    make room for less remat. `offload` is not among them unless it is configured: it computes no
    less than `attention`, and how long the way to the host takes is not in the bound on time.
    """
    remats = (remat for remat in REMAT if remat != "offload" or base.remat == remat)
    given = (base._replace(remat=remat) for remat in remats)
    settings = (setting for one in given for setting in _microbatches(one, base.rows))
    return [setting for setting in settings if setting != base]


def whole_rows(rows: int, microbatches: int, parts: int) -> tuple[int, int]:
    """The nearest (rows, microbatches) that divide over `parts` devices.

    More rows, fewer microbatches: 128 rows in 16, 256 parts -> 256 rows in 1; 64 parts -> 128 in 2.
    """
    rows = -(-rows // parts) * parts
    each = rows // parts
    return rows, max(m for m in range(1, microbatches + 1) if each % m == 0)


def _splits(base: Split, devices: int) -> Iterator[Split]:
    yield base
    devices //= base.context
    for tensor in (n for n in range(1, MOST_TENSOR + 1) if devices % n == 0):
        for fsdp in (n for n in range(1, devices + 1) if (devices // tensor) % n == 0):
            split = Split(devices // tensor // fsdp, fsdp, tensor, base.context)
            if split != base:
                yield split


def _halves(rows: int) -> Iterator[int]:
    yield rows
    while rows % 2 == 0:
        rows //= 2
        yield rows


def _microbatches(setting: Setting, rows: int) -> Iterator[Setting]:
    """Any number of microbatches for the same rows; for fewer rows the given number, or one.

    One microbatch needs no second copy of the gradients to add up in.
    """
    each, rest = divmod(setting.rows, setting.split.data * setting.split.fsdp)
    if rest:
        return
    counts = {setting.microbatches, 1} if setting.rows != rows else set(range(1, each + 1))
    for count in sorted(counts):
        if each % count == 0:
            yield setting._replace(microbatches=count)


def _distance(setting: Setting, base: Setting) -> tuple[int, float, int]:
    changed = setting.changed(base)
    doublings = sum(
        abs(math.log2(new / old))
        for new, old in (
            (setting.rows, base.rows),
            (setting.microbatches, base.microbatches),
            *zip(setting.split, base.split, strict=True),
        )
    )
    doublings += REMAT.index(setting.remat) - REMAT.index(base.remat)
    return len(changed) + ("rows" in changed), doublings, setting.split.tensor
