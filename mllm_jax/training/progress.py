"""Show how a run gets on: smoothed loss, tokens/s and time left, for who watches it.

A terminal has one live line under the log; a file or pipe gets a line every few steps, and at least
one every half minute. The loss of one step depends on what its rows happen to hold, so the shown
losses are those of the last 50 steps, summed over their trained tokens and divided once.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from io import TextIOBase

from tqdm import tqdm

from mllm_jax.common.log import duration
from mllm_jax.training.metrics import Line

WINDOW = 50  # steps whose losses and times are put together
QUIET = 30.0  # seconds after which a line is due, whatever `log_every` says


class Progress:
    """Shows each step's line.

    Args:
        steps: of the whole run.
        resume_step: first step of a resumed run; None for a fresh one.
        log_every: steps between printed lines where the output is not a terminal.
        output: standard error when None.
        last: the line before `resume_step`, for the counts of the next.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        steps: int,
        resume_step: int | None = None,
        log_every: int = 10,
        output: TextIOBase | None = None,
        last: Line | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._steps, self._log_every, self._clock = steps, log_every, clock
        self._output = sys.stderr if output is None else output
        self._recent, self._printed = Recent(last), clock()
        self._bar = None
        if self._output.isatty():
            self._bar = tqdm(
                total=steps,
                initial=resume_step or 0,
                file=self._output,
                unit="step",
                dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {postfix}",
            )

    def show(self, line: Line) -> None:
        """Shows a step, the next after the one before."""
        now = self._clock()
        self._recent.add(line, now)
        left = self._recent.step_seconds * (self._steps - 1 - line["step"])
        text = f"{self._recent.summary()}  {duration(left)} left"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        due = line["step"] % self._log_every == 0 or now - self._printed >= QUIET
        if due or line["step"] == self._steps - 1:
            self._printed = now
            print(f"step {line['step'] + 1}/{self._steps}  {text}", file=self._output, flush=True)

    def close(self) -> None:
        """Ends the live line."""
        if self._bar is not None:
            self._bar.close()


class Recent:
    """The last steps put together.

    Args:
        last: the line before the first, on resume; its totals tell how much each language grew.
    """

    def __init__(self, last: Line | None = None):
        # lines, trained tokens of each language in them, and when they came
        self._lines: deque[tuple[Line, dict[str, float], float]] = deque(maxlen=WINDOW)
        self._last = last or {}

    def add(self, line: Line, now: float) -> None:
        """Adds a step; the oldest one leaves."""
        totals = "total_trained/language/"
        grown = {
            name.removeprefix(totals): value - self._last.get(name, 0.0)
            for name, value in line.items()
            if name.startswith(totals)
        }
        self._lines.append((line, grown, now))
        self._last = line

    @property
    def step_seconds(self) -> float:
        """Of a step with all that comes with it, saves and evaluations too."""
        (first, _, start), (last, _, end) = self._lines[0], self._lines[-1]
        if first is last:
            return last["step_seconds"]
        return (end - start) / (len(self._lines) - 1)

    @property
    def loss(self) -> float:
        """Over the trained tokens of the steps."""
        return _mean([(line["loss"], line["trained_tokens"]) for line, _, _ in self._lines])

    @property
    def language_losses(self) -> dict[str, float]:
        """The same of each language that had a trained token."""
        prefix = "loss/language/"
        pairs: dict[str, list[tuple[float, float]]] = {}
        for line, grown, _ in self._lines:
            for name, tokens in grown.items():
                if prefix + name in line:
                    pairs.setdefault(name, []).append((line[prefix + name], tokens))
        return {name: _mean(of) for name, of in pairs.items()}

    def summary(self) -> str:
        """Losses and speed of the last steps; rates, gradient and loss of the last one."""
        line, languages = self._lines[-1][0], self.language_losses
        parts = [f"loss {self.loss:.4f}"]
        parts += [f"{name} {loss:.3f}" for name, loss in languages.items() if len(languages) > 1]
        parts.append(f"lr {_rates(line)}")
        parts.append(f"grad {line['grad_norm']:.3f}")
        seconds = sum(one["step_seconds"] for one, _, _ in self._lines)
        tokens = sum(
            one["real_tokens_per_second"] * one["step_seconds"] for one, _, _ in self._lines
        )
        parts.append(f"{tokens / seconds:,.0f} tokens/s")
        if "mfu" in line:
            parts.append(f"MFU {line['mfu']:.1%}")
        waited = sum(one["data_wait_share"] * one["step_seconds"] for one, _, _ in self._lines)
        count = len(self._lines)
        parts.append(f"{seconds / count:.2f} s, {waited / seconds:.0%} waiting")
        parts.append(f"this step {line['loss']:.4f}")
        return "  ".join(parts)


def _mean(pairs: list[tuple[float, float]]) -> float:
    """Of (loss, tokens); the last loss where there is no token."""
    tokens = sum(count for _, count in pairs)
    return sum(loss * count for loss, count in pairs) / tokens if tokens else pairs[-1][0]


def _rates(line: Line) -> str:
    """The learning rates; where they differ, each with its parts: 2.00e-06 vision, 1.00e-05 all."""
    parts: dict[float, list[str]] = {}
    for name, value in line.items():
        if name.startswith("learning_rate/"):
            parts.setdefault(value, []).append(name.removeprefix("learning_rate/"))
    if len(parts) == 1:
        return f"{next(iter(parts)):.2e}"
    return ", ".join(f"{rate:.2e} {'+'.join(parts[rate])}" for rate in sorted(parts))
