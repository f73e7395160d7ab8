"""Puts what is asked into batches of like shapes, and reads the pictures of the next ones ahead.

sizes, image slots -> batches: text alone first, then by slots and length
batches -> pictures of each, read by threads while the batch before is worked on
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from mllm_jax.generation.shapes import power

READERS = 4  # threads that read images
AHEAD = 2  # batches whose images are read, or waiting, beside the one that is worked on

Pictures = TypeVar("Pictures")


class Group(NamedTuple):
    """A batch: the numbers of its items, and the shape that it shares with others."""

    items: list[int]
    rows: int  # of the batch; more than items in the last one of its kind
    slots: int  # image slots of a row


def batches(sizes: Sequence[int], slots: Sequence[int], rows: int) -> list[Group]:
    """Items of like length together, text-only ones apart: those skip the vision tower.

    Args:
        sizes: tokens of each item.
        slots: image slots of each.
        rows: of a batch at most.
    """

    def rounded(number: int) -> int:
        return power(slots[number]) if slots[number] else 0

    order = sorted(range(len(sizes)), key=lambda number: (rounded(number), sizes[number]))
    groups = []
    for count, same in itertools.groupby(order, key=rounded):
        numbers = list(same)
        size = min(rows, len(numbers))
        groups += [Group(numbers[i : i + size], size, count) for i in range(0, len(numbers), size)]
    return groups


def read_ahead(
    groups: Sequence[Group], read: Callable[[int], Pictures]
) -> Iterator[tuple[Group, list[Pictures]]]:
    """Every batch with the pictures of its items, which threads read while others are worked on.

    Args:
        groups: from `batches`.
        read: the pictures of an item by its number; its exceptions are raised here, when the
            batch's turn comes.
    """
    waiting: deque[tuple[Group, list[Future[Pictures]]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for group in groups:
                waiting.append((group, [pool.submit(read, number) for number in group.items]))
                if len(waiting) > AHEAD:
                    yield _ready(waiting.popleft())
            while waiting:
                yield _ready(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ready(
    batch: tuple[Group, list[Future[Pictures]]],
) -> tuple[Group, list[Pictures]]:
    group, futures = batch
    return group, [future.result() for future in futures]
