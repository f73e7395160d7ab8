"""What a stage did to each module: parameters counted, and fingerprints of them before and after.

Reads one parameter at a time. A frozen parameter whose bytes moved is an alarm.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mllm_jax.checkpoints.leaves import Leaf

ORDER = ("vision", "connector", "language")
BLOCK = 2**26  # numbers read at once: for a part of a chunk, a checkpoint unpacks all of it


class Module(NamedTuple):
    """One of the parts vision, connector, language, and what a stage did to it."""

    module: str
    parameters: int
    trained: str  # "yes", "no" or "partly"
    before: str  # fingerprint; "random" where all parameters are new, "partly new" where some are
    after: str


def compare_modules(
    before: Mapping[str, Leaf], after: Mapping[str, Leaf], trained: Mapping[str, bool]
) -> list[Module]:
    """A row per module, in the order of the way of the data.

    Args:
        before: path -> leaf, without the parameters that were reinitialised.
        after: path -> leaf, all parameters.
        trained: path -> whether it may have moved.

    Raises:
        RuntimeError: a frozen parameter is not what it was before.
    """
    names = sorted({path.split("/")[0] for path in after}, key=ORDER.index)
    return [_module(name, before, after, trained) for name in names]


def _module(
    name: str, before: Mapping[str, Leaf], after: Mapping[str, Leaf], trained: Mapping[str, bool]
) -> Module:
    paths = [path for path in after if path.split("/")[0] == name]
    old = {path: _hash(before[path], after[path]) for path in paths if path in before}
    new = {path: _hash(after[path], after[path]) for path in paths}
    moved = [path for path in old if not trained[path] and old[path] != new[path]]
    if moved:
        raise RuntimeError(f"{len(moved)} frozen parameters changed: {', '.join(moved[:5])}")
    kinds = {trained[path] for path in paths}
    return Module(
        name,
        sum(after[path].size for path in paths),
        "partly" if len(kinds) > 1 else "yes" if kinds == {True} else "no",
        _before(old, len(paths)),
        _together(new),
    )


def _before(old: Mapping[str, bytes], count: int) -> str:
    """A fingerprint; or that all of `count` parameters are new, or some, as the newline vector."""
    if not old:
        return "random"
    return _together(old) if len(old) == count else "partly new"


def fingerprint(leaves: Mapping[str, Leaf]) -> str:
    """Of the numbers of some parameters, whatever their formats: equal ones are equal parameters.

    Args:
        leaves: path -> lazy leaf; a layer, or a block of a table, is in memory at a time.
    """
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(leaves):
        leaf = leaves[path]
        whole.update(f"{path} {list(leaf.shape)}".encode())
        rest = tuple(slice(0, n) for n in leaf.shape[1:])
        rows = max(1, BLOCK // math.prod(leaf.shape[1:]))
        for row in range(0, leaf.shape[0], rows):
            whole.update(leaf.at((slice(row, row + rows), *rest)).astype(np.float32).tobytes())
    return whole.hexdigest()


def _hash(leaf: Leaf, like: Leaf) -> bytes:
    """Of the bytes in the number format of `like`: trained ones may be in another than before."""
    return hashlib.blake2b(leaf.read().astype(like.dtype, copy=False).tobytes()).digest()


def _together(hashes: Mapping[str, bytes]) -> str:
    whole = hashlib.blake2b(digest_size=5)
    for path in sorted(hashes):
        whole.update(path.encode() + hashes[path])
    return whole.hexdigest()
