"""Where a run's lines go: metrics.jsonl, TensorBoard, and a progress bar or plain lines."""

import json
import math
import os
import sys
from io import TextIOBase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mllm_jax.common.errors import require
from mllm_jax.common.failures import naming
from mllm_jax.common.folders import whole_file
from mllm_jax.training.events import EventFile, append
from mllm_jax.training.metrics import Line


class MetricsWriter:
    """Writes one line per step; a context manager. One process of a run writes.

    A resumed run cuts off lines at or after the resumed step, so that the file holds every step
    once.

    Args:
        run_folder: `metrics.jsonl` and `tensorboard/` lie here.
        steps: of the whole run.
        resume_step: first step that is done again; None for a fresh run.
        log_every: steps between printed lines when the output is no terminal.
        output: where to print; standard error when None, so that standard output stays free for
            results.

    Raises:
        ConfigError: a fresh run finds a metrics.jsonl; a resumed one finds a line it cannot read.
    """

    def __init__(
        self,
        run_folder: Path,
        steps: int,
        resume_step: int | None = None,
        log_every: int = 10,
        output: TextIOBase | None = None,
    ):
        self.path = Path(run_folder) / "metrics.jsonl"
        self.last: Line | None = None  # the last line kept of a resumed run, for the meter
        self.last_written: Line | None = None
        fresh = resume_step is None
        require(
            not (fresh and self.path.exists()),
            f"{self.path}: exists; resume the run or give another folder",
        )
        if not fresh and self.path.exists():
            self.last = cut(self.path, resume_step)
        self._steps, self._log_every = steps, log_every
        self._output = sys.stderr if output is None else output
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed in `close`)
        self._board = EventFile(Path(run_folder) / "tensorboard", resume_step)
        terminal = self._output.isatty()
        self._bar = (
            tqdm(
                total=steps,
                initial=resume_step or 0,
                file=self._output,
                unit="step",
                dynamic_ncols=True,
            )
            if terminal
            else None
        )

    def write(self, line: Line) -> None:
        """Appends the line and shows it. JSON has no NaN: what is not finite is written as null.

        Raises:
            OSError: the disk is full, say; the file ends with a whole line.
        """
        self.last_written = line
        plain = {name: value if math.isfinite(value) else None for name, value in line.items()}
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"
        with naming(self.path):
            append(self._file, text.encode())
        shown = {n: x for n, x in line.items() if n != "step" and not n.startswith("total_")}
        self._board.add(line["step"], shown)
        if self._bar is not None:
            self._bar.set_postfix_str(summary(line), refresh=False)
            self._bar.update()
        elif line["step"] % self._log_every == 0 or line["step"] == self._steps - 1:
            print(
                f"step {line['step'] + 1}/{self._steps}  {summary(line)}",
                file=self._output,
                flush=True,
            )

    def close(self) -> None:
        """Ends files and bar."""
        self._file.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class NoWriter:
    """Stands for the writer in the processes of a run that write nothing."""

    last: Line | None = None
    last_written: Line | None = None

    def write(self, line: Line) -> None:
        """Nothing: process 0 writes the line of all."""

    def __enter__(self) -> "NoWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def cut(path: Path, resume_step: int) -> Line | None:
    """Removes the lines of `resume_step` and later, in one move; returns the last line kept.

    A last line without its line end is what a killed run left half written: it goes too.

    Raises:
        ConfigError: a line that is no JSON object with a step (file and line), nothing is changed
            then.
    """
    kept: list[str] = []
    last = None
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for number, words in enumerate(whole.split("\n")[:-1], start=1):
        line = _parse(words)
        require(
            line is not None,
            f"{path}:{number}: not a line of metrics; repair or remove the file to resume",
        )
        if line is not None and line["step"] < resume_step:
            kept.append(words + "\n")
            last = line
    with whole_file(path) as beside, open(beside, "w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    return last


def summary(line: Line) -> str:
    """A line in a few words: loss, loss per language, rates, speed, waiting."""
    parts = [f"loss {line['loss']:.4f}"]
    languages = [
        (n.removeprefix("loss/language/"), v)
        for n, v in line.items()
        if n.startswith("loss/language/")
    ]
    parts += [f"{name} {value:.3f}" for name, value in languages if len(languages) > 1]
    rates = {v for n, v in line.items() if n.startswith("learning_rate/")}
    parts.append("lr " + " ".join(f"{rate:.2e}" for rate in sorted(rates)))
    parts.append(f"grad {line['grad_norm']:.3f}")
    parts.append(f"{line['real_tokens_per_second']:,.0f} tokens/s")
    if "mfu" in line:
        parts.append(f"MFU {line['mfu']:.1%}")
    parts.append(f"{line['step_seconds']:.2f} s, {line['data_wait_share']:.0%} waiting")
    return "  ".join(parts)


def _parse(words: str) -> Line | None:
    try:
        line = json.loads(words)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
