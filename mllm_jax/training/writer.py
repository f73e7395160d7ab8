"""Write the line of each step: metrics.jsonl, TensorBoard, and progress for who watches."""

import json
import math
import os
from io import TextIOBase
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.common.failures import naming
from mllm_jax.common.folders import whole_file
from mllm_jax.training.events import EventFile, append
from mllm_jax.training.metrics import Line
from mllm_jax.training.progress import Progress
from mllm_jax.training.weights_biases import WandbRun


class MetricsWriter:
    """Writes one line per step; a context manager. One process of a run writes.

    A resumed run cuts off lines at or after the resumed step, so that the file holds every step
    once.

    Args:
        run_folder: of `metrics.jsonl` and `tensorboard/`.
        steps: of the whole run.
        resume_step: first step that is done again; None for a fresh run.
        log_every: steps between printed lines when the output is not a terminal.
        output: where to print; standard error when None, so that standard output stays free for
            results.
        wandb: also gets every line.

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
        wandb: WandbRun | None = None,
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
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed in `close`)
        self._board = EventFile(Path(run_folder) / "tensorboard", resume_step)
        self._wandb = wandb
        self._progress = Progress(steps, resume_step, log_every, output, self.last)

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
        scalars = {n: x for n, x in line.items() if n != "step" and not n.startswith("total_")}
        self._board.add(line["step"], scalars)
        if self._wandb is not None:
            self._wandb.add(line["step"], scalars)
        self._progress.show(line)

    def close(self) -> None:
        """Ends files and progress."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.close()
        self._progress.close()

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
        ConfigError: a line that is not a JSON object with a step (file and line); nothing is
            changed then.
    """
    lines: list[str] = []
    last = None
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for number, text_line in enumerate(whole.split("\n")[:-1], start=1):
        line = _parse(text_line)
        require(
            line is not None,
            f"{path}:{number}: not a line of metrics; repair or remove the file to resume",
        )
        if line is not None and line["step"] < resume_step:
            lines.append(text_line + "\n")
            last = line
    with whole_file(path) as beside, open(beside, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    return last


def _parse(text_line: str) -> Line | None:
    try:
        line = json.loads(text_line)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
