"""Which checkpoints of a run stay, and the loss that the best of them go by."""

from collections.abc import Mapping
from typing import NamedTuple


class Keep(NamedTuple):
    """`train.keep`, `train.keep_every`, `train.keep_best`."""

    last: int
    every: int | None = None
    best: int = 0


def retained(losses: Mapping[int, float | None], keep: Keep) -> set[int]:
    """The steps that stay: the last ones, multiples of `every`, and those of the lowest losses.

        steps 100 .. 900, loss lowest at 300, Keep(last=2, every=400, best=1) -> 300 400 800 900

    Args:
        losses: step -> loss of the complete checkpoints; None: none was measured, never the best.
        keep: how many.
    """
    steps = sorted(losses)
    measured = [(loss, -step) for step, loss in losses.items() if loss is not None]
    best = {-step for _, step in sorted(measured)[: keep.best]}  # of equal ones the later
    every = {step for step in steps if keep.every and step % keep.every == 0}
    return set(steps[-keep.last :]) | every | best


class Mean:
    """The mean loss over the trained tokens of the steps since the last save.

    It is not a held-out loss: a mixture that changes moves it too.
    """

    def __init__(self):
        self._sum = self._tokens = 0.0

    def add(self, loss: float, tokens: float) -> None:
        """One step: its loss is already a mean over its `tokens`."""
        if tokens:
            self._sum, self._tokens = self._sum + loss * tokens, self._tokens + tokens

    def take(self) -> float | None:
        """The mean, and starts again; None when no token was trained."""
        mean = self._sum / self._tokens if self._tokens else None
        self._sum = self._tokens = 0.0
        return mean
