"""Resolves what the command line asks of an evaluation, and runs it: tasks, folders, defaults."""

from collections.abc import Sequence
from pathlib import Path

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import require
from mllm_jax.evaluation import runner
from mllm_jax.evaluation.extras import Extras
from mllm_jax.evaluation.results.measured import Measured
from mllm_jax.evaluation.results.tables import Result
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.rows import ROOT
from mllm_jax.generation.devices import ALL, Devices

MEASURED = "evaluated"  # folder in a run with the answers that were measured


def run_tasks(
    model: Path,
    names: Sequence[str],
    out: Path | None = None,
    *,
    data: Path | None = None,
    images: Path | None = None,
    languages: Sequence[str] = (),
    limit: int | None = None,
    folder: Path | None = None,
    rows: int = runner.ROWS,
    resume: bool = False,
    cache: Path | None = None,
    again: bool = False,
    devices: Devices = ALL,
    fidelity: Sequence[str] = (),
    identifier: Path | None = None,
    chrf: bool = False,
) -> list[Result]:
    """Asks a model the questions of tasks, see `runner.evaluate_tasks`.

    Args:
        model: a model, run or Hugging Face folder.
        names: tasks or task files; none: answers of LLaVA JSON `data`.
        out: results folder; by default inside the run folder.
        data: rows of the one task.
        images: where the image paths of `data` start.
        languages: those alone; of rows that do not say theirs, the one that they are in.
        limit: the first questions of every task and language.
        folder: of prepared task data; default data/tasks.
        rows: texts that are read at the same time.
        resume: continue an interrupted evaluation, if one has begun.
        cache: answers of before, used again; by default in the run folder.
        again: ask even what has been measured.
        devices: that share the work; all of every process by default.
        fidelity, identifier, chrf: see `Extras`.

    Raises:
        ConfigError: neither a task nor data, or a combination without a meaning.
    """
    tasks = _tasks(names, data, images, languages)
    extras = Extras(fidelity, identifier, chrf)
    source = open_model(model)
    if cache is None and source.is_run:
        cache = model / MEASURED
    return runner.evaluate_tasks(
        source,
        tasks,
        runner.inside_run(source, _folder(names)) if out is None else out,
        languages=languages,
        limit=limit,
        root=folder or ROOT,
        rows=rows,
        resume=resume,
        measured=None if cache is None else Measured(cache, again),
        devices=devices,
        extras=extras,
    )


def _tasks(
    names: Sequence[str], data: Path | None, images: Path | None, languages: Sequence[str]
) -> list[TableTask]:
    tasks = [load_task(name) for name in names]
    if data is None:
        require(len(tasks) > 0, "evaluate: give --task NAME or --data FILE")
        require(images is None, "--images: needs --data FILE")
        return tasks
    if not tasks:
        return [runner.free_task(data, images)]
    require(len(tasks) == 1, f"--data: needs one --task, got {len(tasks)}")
    if tasks[0].own_languages:
        return [tasks[0].with_data(None, data, images)]
    require(len(languages) <= 1, f"--data: needs one --language, got {', '.join(languages)}")
    return [tasks[0].with_data(languages[0] if languages else None, data, images)]


def _folder(names: Sequence[str]) -> str:
    """Of the results in a run: one for each task."""
    if not names:
        return "evaluation"
    return f"evaluation-{Path(names[0]).stem}" if len(names) == 1 else "evaluation-tasks"
