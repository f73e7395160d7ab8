"""Runs tasks on a model: answers every question, judges the answers, and writes a results folder.

    tasks, languages -> questions -> items -> batches -> lines of answers    appended as they come
    all lines -> numbers with intervals -> tables, figure, page

An interrupted evaluation continues with `resume` and ends in the same bytes. The folder holds
everything that is needed to repeat a score: every raw answer, the settings, the versions, checksums
of model, data and template.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from mllm_jax.checkpoints.open_model import ModelSource, open_model
from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.folders import exclusive, in_use
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.distributed import processes
from mllm_jax.evaluation.answers import Line, read_answers
from mllm_jax.evaluation.asking import ask
from mllm_jax.evaluation.extras import NOTHING, Extras
from mllm_jax.evaluation.metrics import summary
from mllm_jax.evaluation.parts import Part, asks_text, make_parts
from mllm_jax.evaluation.results import settings, tables, write
from mllm_jax.evaluation.results.measured import Measured
from mllm_jax.evaluation.results.progress import Key, Progress, files, key_of
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.rows import ROOT
from mllm_jax.generation.devices import ALL, Devices
from mllm_jax.generation.engine import Answerer

ROWS = 32  # texts that are read at the same time
RESUME = "continue with --resume"


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    images: str | Path | None = None,
    max_new_tokens: int = 32,
    rows: int = ROWS,
    *,
    resume: bool = False,
    devices: Devices = ALL,
) -> dict[str, Any]:
    """Answers every question of a LLaVA JSON file greedily, and scores the answers.

        evaluate("runs/instruct", "held-out.json")["languages"]["eu"]["exact_match"]

    The turns before a question are the true ones, not the model's own answers.

    Args:
        model: a model folder, run folder (its last checkpoint) or Hugging Face folder.
        data: LLaVA JSON or JSONL; every record names its language.
        out: folder to make; default `evaluation` inside a run folder.
        images: where image paths start; default `images` beside the file, else the file's folder.
        max_new_tokens: where an answer is cut.
        rows: answered at the same time.
        resume: continue an evaluation that was interrupted; start it where none has begun.
        devices: that share the work; all of every process by default.

    Returns:
        What is written to scores.json: "languages" (count, exact_match, loss, perplexity,
        answer_perplexity, answers_left_out, answer_tokens, unfinished of each; None for what the
        chat template does not allow to be measured) and "settings".

    Raises:
        ConfigError: no such model or file, records that cannot be used (named), prompts that are
            too long, an OUT that exists and is not empty, or no OUT for a model that is not a
            run folder.
    """
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    source = open_model(model)
    out = Path(out) if out is not None else inside_run(source, "evaluation")
    task = free_task(data, images, max_new_tokens)
    evaluate_tasks(source, [task], out, rows=rows, resume=resume, devices=devices)
    return read_json(out / write.SCORES)


def free_task(
    data: str | Path, images: str | Path | None = None, max_new_tokens: int | None = None
) -> TableTask:
    """The task of answering all questions of a LLaVA JSON file; see `evaluate` for the arguments.

    Raises:
        ConfigError: no such file or folder.
    """
    folder = None if images is None else Path(images)
    require(folder is None or folder.is_dir(), f"images={str(images)!r}: no such folder")
    task = load_task("free").with_data(None, Path(data), folder)
    if max_new_tokens is not None:
        task = dataclasses.replace(task, max_new_tokens=max_new_tokens)
    return task


def evaluate_tasks(
    model: str | Path | ModelSource,
    tasks: Sequence[TableTask],
    out: str | Path,
    *,
    languages: Sequence[str] = (),
    limit: int | None = None,
    root: Path = ROOT,
    rows: int = ROWS,
    resume: bool = False,
    measured: Measured | None = None,
    devices: Devices = ALL,
    extras: Extras | None = None,
) -> list[tables.Result]:
    """Asks a model the questions of tasks, and writes a results folder.

    All processes of a run call it: each answers its share of the batches, process 0 writes.

    Args:
        model: a model folder, run folder (its last checkpoint) or Hugging Face folder; or as it was
            opened.
        tasks: from `load_task`, each once.
        out: folder to make.
        languages: of every task; all that a task has where none is given.
        limit: the first questions of every task and language; all when None.
        root: folder of prepared task data.
        rows: texts that are read at the same time.
        resume: continue an evaluation that was interrupted; start it where none has begun.
        measured: answers of before, which are used again; None: every question is asked.
        devices: that share the work; all of every process by default.
        extras: what is computed beside the tasks' own numbers; where that is the language of
            answers, questions about images are asked without them, too.

    Returns:
        A result for every task and language.

    Raises:
        ConfigError: see `evaluate`; a task without questions in one of the languages, or an OUT
            that was begun with other settings.
    """
    require(rows > 0, f"rows={rows} must be positive")
    out, extras = Path(out), extras or Extras()
    _check_names(tasks)
    with ExitStack() as stack:
        if processes.is_first():
            _check_out(out, resume)
            stack.enter_context(exclusive(out))
        stack.enter_context(interrupts.advising(RESUME))
        opened = Answerer(model, mesh=devices.mesh())
        parts, tree = make_parts(opened, tasks, languages, limit, root, rows, extras)
        finished = not files(out) and (out / write.ANSWERS).is_file()
        if processes.is_first():
            extras.say()
            _begin(out, tree, measured, parts)
        processes.barrier("before answering")
        if finished:
            print(f"{out}: is finished already", flush=True)
            lines = _finished(out)
        else:
            lines = _answer(opened, parts, out)
        results = _results(parts, lines, extras)
        if processes.is_first() and not finished:
            write.finish(out, results, tree)
            if measured is not None:
                measured.keep(tree, results)
    if processes.is_first():
        print(f"{printed(results)}written to {out}", flush=True)
    return results


def printed(results: Sequence[tables.Result]) -> str:
    """What the terminal shows: of LLaVA JSON data alone a table of exact match and losses."""
    free = all(type(one.task).family == "free" for one in results)
    if free and not any(one.extra.numbers for one in results):
        return summary.table(write.free_scores(results))
    return tables.markdown(results)


def inside_run(source: ModelSource, name: str) -> Path:
    """The folder of this name in a run folder.

    Raises:
        ConfigError: the model is not a run.
    """
    require(source.is_run, f"{source.where}: not a run folder; give --out DIR for the scores")
    return source.where / name


# ------------------------------------------------------------------------------------------ insides


def _check_names(tasks: Sequence[TableTask]) -> None:
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"task {twice}: is there twice; give each task once")


def _check_out(out: Path, resume: bool) -> None:
    require(not out.is_file(), f"{out}: is a file; give a folder to make")
    if not in_use(out):
        return
    begun = (out / write.SETTINGS).is_file()
    remedy = f"{RESUME}, or give another folder" if begun else "remove it or give another folder"
    require(resume, f"{out}: exists and is not empty; {remedy}")
    require(
        begun or bool(files(out)),
        f"{out}: exists and is not a results folder ({write.SETTINGS} is missing); give another",
    )


def _begin(
    out: Path, tree: settings.Tree, measured: Measured | None, parts: Sequence[Part]
) -> None:
    """Writes the settings, or compares them with those that OUT was begun with.

    Answers that were measured before come first: a folder with settings has all of them.
    """
    file = out / write.SETTINGS
    if file.is_file():
        settings.check_same(read_json(file), tree, out)
        return
    for path in files(out):  # nothing was asked yet
        path.unlink()
    progress = Progress(out)
    for part in parts if measured is not None else ():
        assert measured is not None
        progress.add(measured.lines(tree, part.task, part.language, part.without_images))
    progress.close()
    write_json(file, tree)


def _answer(opened: Answerer, parts: Sequence[Part], out: Path) -> dict[Key, Line]:
    """Asks what is not answered yet; returns the lines of all processes."""
    number, count = jax.process_index(), jax.process_count()
    progress = Progress(out, number)
    try:
        with _bar(parts, progress) as bar:
            for part in parts:
                mine = part.groups[number::count]
                todo = [group for group in mine if not progress.has(part.keys_of(group))]
                for lines in ask(opened, part.task, part.items, todo):
                    progress.add(part.marked(lines))
                    bar.update(len(lines))
    finally:
        progress.close()
    processes.barrier("after answering")
    if count > 1:
        progress = Progress(out, number)
        progress.close()
    return progress.lines


@contextmanager
def _bar(parts: Sequence[Part], progress: Progress) -> Iterator[tqdm]:
    total = sum(len(part.items) for part in parts)
    with tqdm(
        total=total,
        initial=min(total, len(progress.lines)),
        desc="answering",
        unit="answer",
        file=sys.stderr,
        disable=None,
    ) as bar:
        yield bar


def _finished(out: Path) -> dict[Key, Line]:
    """The answers of a folder that is finished."""
    files = [file for name in write.BOTH if (file := out / name).is_file()]
    return {key_of(line): line for file in files for line in read_answers(file)}


def _results(parts: Sequence[Part], lines: dict[Key, Line], extras: Extras) -> list[tables.Result]:
    """The numbers of every task and language, from all of its answers."""
    alone = {
        (part.task.name, part.language): _lines_of(part, lines)
        for part in parts
        if part.without_images
    }
    results = []
    for part in parts:
        if part.without_images:
            continue
        answered = _lines_of(part, lines)
        without = alone.get((part.task.name, part.language), [])
        extra = extras.of(answered, without) if asks_text(part.task) else NOTHING
        results.append(
            tables.result(part.task, part.language, part.questions, answered, extra, without)
        )
    return results


def _lines_of(part: Part, lines: dict[Key, Line]) -> list[Line]:
    missing = [key for key in part.keys if key not in lines]
    if missing:
        raise ConfigError(
            f"task {part.task.name} in {part.language}: {len(missing):,} questions have no answer "
            f"in the folder; {RESUME}"
        )
    return [lines[key] for key in part.keys]
