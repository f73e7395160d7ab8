"""Fetches the data of an evaluation's tasks once, and reads every question of them.

    task file -> data sets and their revisions -> ROOT/lmms-lab--POPE -> questions, counted

Afterwards evaluation is offline.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, closest, quoted, require
from mllm_jax.common.folders import check_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.data.sources.hub import download
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.rows import ROOT, hub_folder

Notes = dict[str, dict[str, Any]]  # data set -> what its folder's hub.json says


def run(
    names: Sequence[str],
    languages: Sequence[str] = (),
    revisions: Sequence[str] = (),
    folder: Path | None = None,
    json_file: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Prepares the data of tasks.

    Args:
        names: tasks, or task files.
        languages: theirs; all with data when empty.
        revisions: HUB=COMMIT, for data sets that the task files do not pin.
        folder: of all tasks' data; `data/tasks` when None.
        json_file: where the counts are also written.

    Returns:
        {"task", "language", "questions", "images"} of each task and language.

    Raises:
        ConfigError: no such task or language, a data set without a revision, a folder that holds
            another one, or a row that cannot be used.
        RunError: a data set cannot be fetched.
    """
    if json_file is not None:
        check_file(json_file)
    root = folder if folder is not None else ROOT
    tasks = [load_task(name) for name in names]
    chosen = [(task, language) for task in tasks for language in _languages(task, languages)]
    for hub, note in _notes(tasks, chosen, _revisions(revisions)).items():
        target = root / hub_folder(hub)
        download(note, target, str(target), hub)
    reports = [_report(task, language, root) for task, language in chosen]
    rows = [tuple(str(value) for value in report.values()) for report in reports]
    print(markdown_table(tuple(reports[0]), rows), end="", flush=True)
    if json_file is not None:
        write_json(Path(json_file), reports)
    return reports


def _languages(task: TableTask, languages: Sequence[str]) -> Sequence[str]:
    """Those of a task that were asked for."""
    names = task.languages
    for language in languages:
        require(
            language in names,
            f"task {task.name}: no data or prompts in {quoted(language, 40)}; there are "
            f"{', '.join(names) or 'none'}; a task file adds them (docs/evaluation.md)",
        )
    require(
        len(names) > 0,
        f"task {task.name}: no published data are known; name yours in a task file, or give "
        "evaluate --data FILE",
    )
    return languages or names


def _revisions(pairs: Sequence[str]) -> dict[str, str]:
    """["HUB=COMMIT"] -> {HUB: COMMIT}."""
    revisions = {}
    for pair in pairs:
        hub, equals, commit = pair.partition("=")
        require(
            bool(hub and equals and commit),
            f"--revision {quoted(pair, 120)}: expected HUB=COMMIT, as lmms-lab/POPE=0123abc",
        )
        revisions[hub] = commit
    return revisions


def _notes(
    tasks: Sequence[TableTask],
    chosen: Sequence[tuple[TableTask, str]],
    revisions: dict[str, str],
) -> Notes:
    """The data sets of tasks in their languages.

    Several languages of a task may share one: its files are those of all languages.
    """
    sets: dict[str, str | None] = {}
    for task, language in chosen:
        for hub, revision in task.data[language].hubs().items():
            earlier = sets.setdefault(hub, revision)
            require(
                earlier == revision,
                f"{hub}: task {task.name} needs revision {revision}, another {earlier}; give each "
                "a folder of its own (--folder)",
            )
    unused = [hub for hub in revisions if hub not in sets]
    if unused:
        near = closest(unused[0], sets)
        hint = f"did you mean {near}?" if near else f"they read {', '.join(sets) or 'none'}"
        raise ConfigError(f"--revision {quoted(unused[0], 80)}: no data set of these tasks; {hint}")
    return {hub: _note(hub, revision, revisions.get(hub), tasks) for hub, revision in sets.items()}


def _note(
    hub: str, pinned: str | None, revision: str | None, tasks: Sequence[TableTask]
) -> dict[str, Any]:
    require(
        pinned is None or revision in (None, pinned),
        f"--revision {hub}={revision}: the task file pins {pinned}; change it there",
    )
    if pinned is None and revision is None:
        raise ConfigError(
            f"{hub}: no revision is pinned; choose a commit on https://huggingface.co/datasets/{hub}"
            f"/commits/main and give --revision {hub}=COMMIT, so that the numbers can be repeated"
        )
    every = [one for task in tasks for one in task.data.values() if hub in one.hubs()]
    patterns = sorted({pattern for one in every for pattern in one.files})
    whole = any(not one.files for one in every)
    return {"hub": hub, "revision": pinned or revision} | ({} if whole else {"files": patterns})


def _report(task: TableTask, language: str, root: Path) -> dict[str, Any]:
    questions = task.questions(language, root)
    return {
        "task": task.name,
        "language": language,
        "questions": len(questions),
        "images": sum(len(question.images) for question in questions),
    }
