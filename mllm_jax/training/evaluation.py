"""Evaluate a stage while it trains: the held-out loss, whether it still falls, sample answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from mllm_jax.common.log import Log
from mllm_jax.config.stage import Config
from mllm_jax.data.heldout import HeldOut
from mllm_jax.distributed.watchdog.heartbeat import waits_for
from mllm_jax.training import run_log
from mllm_jax.training.heldout import HeldOutLoss, Lowest, due
from mllm_jax.training.metrics import Line
from mllm_jax.training.setup import TrainSetup

# (config, run folder, tokenizer, held-out records, mesh) -> parameters -> sample answers as text
Sampler = Callable[[Config, Path, Any, HeldOut, Mesh], Callable[[Any], str]]


class Evaluation:
    """`train.evaluate` of a run; never due where the section is missing.

    Args:
        config: the stage.
        setup: from `make_setup`.
        heldout: the records; None without the section.
        steps: updates of the whole run.
        log: of the run.
        saved: what the checkpoint that the run continues from keeps beside the state; {} at step 0.
        samples: parameters -> sample answers as text, or None.
    """

    def __init__(
        self,
        config: Config,
        setup: TrainSetup,
        heldout: HeldOut | None,
        steps: int,
        log: Log,
        saved: dict[str, Any],
        samples: Callable[[Any], str] | None = None,
    ):
        self._section, self._out, self._steps = config.train.evaluate, Path(config.out), steps
        self._samples, self._log = samples, log
        self._loss: HeldOutLoss | None = None
        self._last: tuple[int, float] | None = None  # step and loss of the last evaluation
        self.lowest = Lowest()
        if heldout is not None:
            self._loss = HeldOutLoss(setup, heldout, config.data.languages)
            self.lowest = Lowest.restored(saved, self._loss.identity)

    def due(self, step: int) -> bool:
        """Whether the loss is measured after `step` updates."""
        return self._section is not None and due(step, self._section.every, self._steps)

    @property
    def ended(self) -> bool:
        """Whether `train.evaluate.stop_after` ends the stage."""
        return self._section is not None and self.lowest.ends(self._section.stop_after)

    def loss_after(self, step: int) -> float | None:
        """The held-out loss after `step` updates, if that was the last evaluation."""
        return self._last[1] if self._last is not None and self._last[0] == step else None

    def __call__(self, step: int, params: Any) -> Line:
        """Measures the loss after `step` updates, and writes sample answers; see `HeldOutLoss`."""
        assert self._loss is not None
        with waits_for(f"the held-out loss after step {step}"):
            line = self._loss(params)
        self._last = step, line["heldout/loss"]
        self.lowest = self.lowest.after(*self._last)
        self._log(run_log.measured(step, line, self.lowest))
        if self._samples is not None:
            path = self._out / "samples" / f"step-{step:06}.txt"
            path.parent.mkdir(exist_ok=True)
            heading = f"step {step}, held-out loss {line['heldout/loss']:.4f}\n\n"
            path.write_text(heading + self._samples(params), encoding="utf-8")
            self._log(f"sample answers: {path}")
        return line
