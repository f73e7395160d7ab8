"""A folder of runs as one page: finds the runs and the evaluation, collects them, writes the file.

RUN/config.yaml, metrics.jsonl, ...                   a run
OUT/summary.json, OUT/<stage>/, OUT/evaluation/       a recipe or the quickstart: several runs
OUT/evaluation/<variant>/                             of a recipe that is a tree

A folder of an unfinished recipe gives a page about what is there; what is missing is said in it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_jax.commands.report.answers import read_scores
from mllm_jax.commands.report.compared import read_compared
from mllm_jax.commands.report.damage import naming_damage
from mllm_jax.commands.report.stages import read_machine, read_stage
from mllm_jax.commands.report.variants import read_variants
from mllm_jax.common.errors import require
from mllm_jax.common.folders import write_whole
from mllm_jax.common.json_file import read_json
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.report import html
from mllm_jax.report.page import report_page
from mllm_jax.report.views import Report, Scores, Stage, Variant

PAGE = "report.html"


def run(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run's, a recipe's or the quickstart's folder.

    Args:
        folder: a run has `metrics.jsonl` in it, a recipe in its stages' folders.
        out: the file; default `report.html` in the folder. It is whole, or as it was.

    Returns:
        The file.

    Raises:
        ConfigError: nothing to report: no run with a step, or files that are damaged (named).
    """
    folder = Path(folder)
    page = Path(out) if out is not None else folder / PAGE
    report = collect(folder)
    for line in report.missing:
        print(f"report: {line}", flush=True)
    text = report_page(report)
    write_whole(page, text)
    print(f"report of {folder}: {page}", flush=True)
    return page


def collect(folder: Path) -> Report:
    """Reads all that a report shows of a folder. Raises ConfigError as `run`."""
    require(folder.is_dir(), f"{folder}: no such folder")
    path = folder / "summary.json"
    summary: dict[str, Any] = read_json(path) if path.is_file() else {}
    with naming_damage(path):
        done = {stage["run"]: _entry(stage) for stage in summary.get("stages", [])}
    runs, missing = _runs(folder, list(done))
    configs = [loading.load(Config, run / "config.yaml") for run in runs]
    stages = [
        read_stage(run, config, done.get(run.name))
        for run, config in zip(runs, configs, strict=True)
    ]
    scores, variants = None, []
    if "variants" in summary:
        names = {run.name: config for run, config in zip(runs, configs, strict=True)}
        with naming_damage(path):
            variants, notes = read_variants(folder, summary, names)
    else:
        scores, notes = read_scores(folder / "evaluation", configs[-1], summary.get("kinds", {}))
    seconds = {stage.name: _seconds(stage, done.get(stage.name)) for stage in stages}
    times = {**seconds, **summary.get("seconds", {})}
    facts = [(name, html.duration(value)) for name, value in times.items()]
    machine = read_machine(runs[-1])
    device = summary.get("device", machine.get("devices"))
    facts += [("device", device)] if device else []
    facts += (summary.get("versions") or machine.get("versions", {})).items()
    return Report(
        title=summary.get("title", f"Report of {'/'.join(folder.resolve().parts[-2:])}"),
        about=_about(stages, scores, variants),
        stages=stages,
        scores=scores,
        facts=facts,
        seconds=sum(times.values()),
        missing=[*missing, *notes],
        variants=variants,
        compared=read_compared(folder, stages[-1].name) if scores is not None else (),
    )


def _entry(stage: dict[str, Any]) -> dict[str, Any]:
    """What a report needs of a finished stage."""
    modules = [{key: of[key] for key in ("module", "before", "after")} for of in stage["modules"]]
    return {"seconds": float(stage["seconds"]), "modules": modules}


def _runs(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The folders of runs with a step, in the order of training, and lines about the others."""
    if (folder / "config.yaml").is_file():
        path = folder / "metrics.jsonl"
        require(path.is_file(), f"{path}: no such file; a run without steps has no report")
        return [folder], []
    others = [path.parent for path in folder.glob("*/config.yaml") if path.parent.name not in names]
    begun = sorted(
        (path for path in others if (path / "model").is_dir()),
        key=lambda path: (path / "config.yaml").stat().st_mtime,
    )
    runs = [*(folder / name for name in names), *begun]
    require(
        len(runs) > 0,
        f"{folder}: neither a run (config.yaml, metrics.jsonl) nor a recipe's folder with one",
    )
    ready = [run for run in runs if _has_steps(run)]
    require(len(ready) > 0, f"{runs[0] / 'metrics.jsonl'}: no steps to report yet")
    missing = [f"{run.name}: no steps yet" for run in runs if run not in ready]
    return ready, missing


def _has_steps(run: Path) -> bool:
    file = run / "metrics.jsonl"
    return file.is_file() and file.stat().st_size > 0


def _seconds(stage: Stage, entry: dict[str, Any] | None) -> float:
    """Wall-clock time of a stage; of its steps alone where nothing else was measured."""
    return entry["seconds"] if entry else stage.metrics.total("step_seconds")


def _about(stages: Sequence[Stage], scores: Scores | None, variants: Sequence[Variant]) -> str:
    names = (", " if variants else " → ").join(stage.name for stage in stages)
    steps = sum(stage.metrics.steps for stage in stages)
    trained = f"{html.counted(steps, 'step')} of training"
    if len(stages) > 1:
        trained += f" in {len(stages)} stages: {names}"
    if variants:
        evaluated = sum(variant.scores is not None for variant in variants)
        return f"{trained}; {html.counted(len(variants), 'model')}, {evaluated} of them evaluated."
    if scores is None:
        return f"{trained}."
    languages = " and ".join(map(html.language_name, scores.languages))
    questions = html.counted(scores.count, "question")
    return f"{trained}, then an evaluation by {questions} in {languages}."
