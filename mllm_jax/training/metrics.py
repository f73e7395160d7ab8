"""What a run says about itself: the numbers of each step, from the device and from the host.

`Meter` counts what only the host knows (padding, image slots, shares of the mixture, waiting) and
joins it with the step's device metrics into one line; `MetricsWriter` puts lines into
metrics.jsonl, TensorBoard and before the reader's eyes. The loop fetches a step's metrics after the
next step is dispatched, so the device never waits for a line:

    for step in range(start, stop):
        with watch.waiting():
            host = next(batches)
        state, metrics = compiled.call(state, shard_batch(host.batch, mesh))
        counts = meter.count(host.contents)
        if previous: writer.write(meter.line(*previous, watch.restart()))
        previous = (step, metrics, counts)
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from mllm_jax.batch import Contents
from mllm_jax.common.errors import RunError

Line = dict[str, Any]  # one line of metrics.jsonl: step and numbers
# of stages with a regularizer over pairs, see training/pairs: means and what they are over; counts
PAIR_MEANS = {"pair_kl": "pair_tokens", "pair_contrastive": "pairs", "pair_cosine": "pairs"}
PAIR_COUNTS = ("pairs", "pairs_unequal")


class Diverged(RunError):
    """The loss, the gradient or a parameter is not finite: the run ends."""


def require_finite(
    step: int, metrics: Mapping[str, Any], last_good: Callable[[], str | None]
) -> None:
    """Raises Diverged unless the step's loss, gradient and parameters are finite.

    Parameters and moments never take up such a step (see `make_train_step`), so nothing that is not
    finite can reach a checkpoint, although the host hears of it one step later.

    Args:
        step: number of the step the metrics belong to.
        metrics: from the train step.
        last_good: finds the last checkpoint, None if there is none; asked when it is needed.
    """
    if not float(metrics["finite"]):
        checkpoint = last_good()
        saved = (
            f"last good checkpoint: {checkpoint}"
            if checkpoint
            else "no checkpoint was saved before"
        )
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        raise Diverged(
            f"step {step}: loss {loss}, gradient norm {norm}, parameter norm "
            f"{float(metrics['param_norm'])}, not finite; {saved}"
        )


class StepTime(NamedTuple):
    """Time of one turn of the loop, in seconds."""

    seconds: float
    waiting: float  # of these, for data


class Watch:
    """Times the turns of the loop and how much of each was spent waiting for data."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._start, self._waiting = clock, clock(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the call that waits for the next batch."""
        start = self._clock()
        yield
        self._waiting += self._clock() - start

    @property
    def waited(self) -> float:
        """Seconds of this turn that were spent waiting for data so far."""
        return self._waiting

    def restart(self) -> StepTime:
        """Ends a turn and begins the next."""
        now = self._clock()
        step_time = StepTime(now - self._start, self._waiting)
        self._start, self._waiting = now, 0.0
        return step_time


class Counts(NamedTuple):
    """What the rows of one step hold; records are examples."""

    positions: int  # rows x length
    tokens: int  # real ones: no padding
    images: int
    slots: int  # rows x image slots
    tiles: int  # of these, in use
    # "records", "tokens" -> "stream" and "language" -> count by number
    mixture: dict[str, dict[str, Float64[np.ndarray, "n"]]]


class Tasks:
    """The tasks that streams name: sums over the streams of each.

    Args:
        of_streams: task of every stream, None where it names none.
    """

    def __init__(self, of_streams: Sequence[str | None]):
        self.names = tuple(dict.fromkeys(task for task in of_streams if task is not None))
        self._has = np.array([[task == name for task in of_streams] for name in self.names])

    def total(self, by_stream: np.ndarray) -> Float64[np.ndarray, "n"]:
        """Numbers of the streams -> of the tasks."""
        return np.where(self._has, by_stream, 0.0).sum(axis=1)


class Meter:
    """Counts batches on the host and words the lines of metrics.jsonl.

    Shares of the mixture are cumulative over the whole run: realised, not targets. On resume they
    continue from `last`. Counts are of all processes' rows: each knows what the others read.

    Args:
        streams, languages: their names, in the order of the batch's numbers.
        tasks: of every stream; lines have losses and shares of each task that is named.
        flops: (image slots in use, trained tokens) -> useful FLOPs of a step
            (`flops.flops_per_step`), for the MFU. Empty slots are computed as well, but that is no
            use.
        peak: FLOP/s of all chips together (`hardware.peak_rate` x chips); None: no MFU is written.
        last: the last line kept on resume (`MetricsWriter.last`).
    """

    def __init__(
        self,
        streams: Sequence[str],
        languages: Sequence[str],
        tasks: Sequence[str | None] = (),
        flops: Callable[[int, float], float] | None = None,
        peak: float | None = None,
        last: Line | None = None,
    ):
        self.names = {"stream": tuple(streams), "language": tuple(languages)}
        self._tasks = Tasks(tasks)
        if self._tasks.names:  # behind the streams, whose sums they are
            self.names["task"] = self._tasks.names
        self._flops, self._peak = flops, peak
        self._totals = {
            (what, kind): np.array(
                [(last or {}).get(f"total_{what}/{kind}/{n}", 0.0) for n in names]
            )
            for what in ("records", "tokens", "trained")
            for kind, names in self.names.items()
        }

    def count(self, contents: Contents) -> Counts:
        """Counts of one step."""
        numbers = {"stream": contents.streams, "language": contents.languages}
        ones = np.ones(len(contents.records), np.int64)
        counted = {"records": ones, "tokens": contents.tokens}
        mixture = {
            what: {
                kind: np.bincount(n, each, minlength=len(self.names[kind]))
                for kind, n in numbers.items()
            }
            for what, each in counted.items()
        }
        for of in mixture.values():
            self._add_tasks(of, "stream", "task")
        return Counts(
            positions=contents.positions,
            tokens=int(contents.tokens.sum()),
            images=int(contents.images.sum()),
            slots=contents.slots,
            tiles=int(contents.tiles.sum()),
            mixture=mixture,
        )

    def _add_tasks(self, numbers: dict[str, Any], of_streams: str, of_tasks: str) -> None:
        if self._tasks.names:
            numbers[of_tasks] = self._tasks.total(numbers[of_streams])

    def line(
        self, step: int, metrics: Mapping[str, Any], counts: Counts, step_time: StepTime
    ) -> Line:
        """One line of metrics.jsonl, in the order people read it; call it once per step, in order.

        A stream or language without a trained token in this step has no loss in the line.

        Args:
            step: number of the step, 0 for the first.
            metrics: the train step's; fetching them waits for the step to end.
            counts: of the same step's batch.
            step_time: time of the turn of the loop in which the step ended.
        """
        got = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        for what in ("loss_sum", "tokens"):
            self._add_tasks(got, f"stream_{what}", f"task_{what}")
        trained = float(got["trained_tokens"])
        line: Line = {"step": step, "loss": float(got["loss"])}
        for kind, names in self.names.items():
            sums, tokens = got[f"{kind}_loss_sum"], got[f"{kind}_tokens"]
            line |= {
                f"loss/{kind}/{n}": s / t for n, s, t in zip(names, sums, tokens, strict=True) if t
            }
        line |= {k: float(got[k]) for k, count in PAIR_MEANS.items() if k in got and got[count]}
        line |= {name: float(got[name]) for name in PAIR_COUNTS if name in got}
        line |= {name: float(got[name]) for name in ("grad_norm", "update_norm", "param_norm")}
        line |= {name: float(v) for name, v in got.items() if name.startswith("learning_rate/")}
        line |= {
            "finite": float(got["finite"]),
            "trained_tokens": trained,
            "trained_tokens_per_second": trained / step_time.seconds,
            "real_tokens_per_second": counts.tokens / step_time.seconds,
            "images_per_second": counts.images / step_time.seconds,
            "step_seconds": step_time.seconds,
            "data_wait_share": step_time.waiting / step_time.seconds,
            "padding_share": 1 - counts.tokens / counts.positions,
        }
        if counts.slots:
            line["unused_slot_share"] = 1 - counts.tiles / counts.slots
        if self._flops is not None:
            rate = self._flops(counts.tiles, trained) / step_time.seconds
            line["teraflops_per_second"] = rate / 1e12
            if self._peak is not None:
                line["mfu"] = rate / self._peak
        trained_by = {kind: got[f"{kind}_tokens"] for kind in self.names}
        return line | self._mixture(counts.mixture | {"trained": trained_by})

    def _mixture(self, mixture: Mapping[str, Mapping[str, np.ndarray]]) -> Line:
        """Cumulative shares, and the totals they come from (a resumed run reads them back)."""
        shares, totals = {}, {}
        for (what, kind), total in self._totals.items():
            total += mixture[what][kind]
            whole = max(float(self._totals[what, "stream"].sum()), 1e-30)
            for name, value in zip(self.names[kind], total.tolist(), strict=True):
                shares[f"share_{what}/{kind}/{name}"] = value / whole
                totals[f"total_{what}/{kind}/{name}"] = value
        return shares | totals
