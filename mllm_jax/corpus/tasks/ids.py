"""Finds ids that occur twice among any number of records, in eight bytes a record."""

import hashlib
from array import array
from collections.abc import Callable

import numpy as np

from mllm_jax.common.errors import ConfigError, quoted


class Ids:
    """Digests of ids in the order of their records."""

    def __init__(self):
        self._digests = array("Q")

    def add(self, key: str) -> None:
        """Notes the id of the next record."""
        self._digests.append(digest(key))

    def array(self) -> np.ndarray:
        """The digests, unsigned 64-bit."""
        return np.frombuffer(self._digests, np.uint64)

    def check(self, key_of: Callable[[int], str], location: Callable[[int], str]) -> None:
        """Raises ConfigError if two records have one id; names both places.

        Args:
            key_of: the id of a record by number; asked where digests are equal.
            location: its place.
        """
        digests = self.array()
        order = np.argsort(digests, kind="stable")
        equal = np.flatnonzero(digests[order[1:]] == digests[order[:-1]])
        suspects: dict[str, int] = {}
        for number in sorted({int(order[n + i]) for n in equal for i in (0, 1)}):
            key = key_of(number)
            if key in suspects:
                raise ConfigError(
                    f"{location(number)}: id {quoted(key, 60)} is that of "
                    f"{location(suspects[key])} too; give every record an id of its own"
                )
            suspects[key] = number


def digest(key: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
