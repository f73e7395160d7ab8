"""Writes the results of a sweep: a line for every run, figures, and every pair compared.

results.json  results.md  results.tex     scores with intervals
pairs.json                                every pair of runs compared, p corrected over all (Holm)
METRIC.svg                                the score against an axis
results.html                              all of it as a page

They hold no times and no paths of the machine: the same sweep gives the same bytes, however many
processes did it and however often they were stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_jax.commands.recipe.tree import EVALUATION
from mllm_jax.commands.sweep.figures import write_figures
from mllm_jax.commands.sweep.page import page
from mllm_jax.commands.sweep.plan import Plan
from mllm_jax.commands.sweep.scores import METRICS, Metric, Scored, Scores, read_scores
from mllm_jax.common.folders import write_whole
from mllm_jax.common.json_file import write_json
from mllm_jax.common.locks import claimed
from mllm_jax.common.markdown import markdown_table
from mllm_jax.config.sweep import SweepConfig
from mllm_jax.evaluation import comparison, comparison_table
from mllm_jax.evaluation.comparison import Comparison
from mllm_jax.evaluation.results.tables import interval, latex_table

WAIT = 600.0  # seconds for another process that writes them


def write_tables(plan: Plan, sweep: SweepConfig, out: Path) -> None:
    """Writes the results of all runs that are finished, by whichever process.

    One process at a time reads and writes, so the last one to finish leaves those of all runs.

    Raises:
        ConfigError: damaged results (named).
    """
    with claimed(out / ".results.lock", out, WAIT):
        rows, notes = read_scores(plan, out)
        if not rows:
            return
        pairs = _pairs(rows, out)
        head, cells = _cells(rows)
        missing = [row.name for row in plan.rows if row not in [one.row for one in rows]]
        if missing:
            notes.append(f"{len(missing)} of {len(plan.rows)} runs are not finished")
        write_json(out / "results.json", {"runs": [_tree(one) for one in rows], "notes": notes})
        write_json(out / "pairs.json", {"pairs": [pair._asdict() for pair in pairs]})
        write_whole(out / "results.md", _markdown(head, cells, notes, rows, pairs))
        write_whole(out / "results.tex", latex_table(head, cells))
        charts, close = write_figures(rows, sweep, out), neighbours(rows, pairs)
        text = page(sweep, head, cells, notes, charts, rows, close, len(pairs))
        write_whole(out / "results.html", text)
    print("\n" + markdown_table(head, cells) + "".join(f"{note}\n" for note in notes), end="")
    print(f"written to {out / 'results.html'}", flush=True)


def _pairs(rows: Sequence[Scored], out: Path) -> list[Comparison]:
    """Every pair of runs in every language."""
    if len(rows) < 2:
        return []
    answers = [
        comparison.load(out / EVALUATION / one.row.name)._replace(name=one.row.name) for one in rows
    ]
    return comparison.compare(comparison.pair_up(answers))


def neighbours(rows: Sequence[Scored], pairs: Sequence[Comparison]) -> list[Comparison]:
    """The pairs of runs that differ in one axis alone."""
    points = {one.row.name: dict(one.row.run.points) for one in rows}

    def close(pair: Comparison) -> bool:
        a, b = points[pair.a], points[pair.b]
        return bool(a and b) and sum(a[axis] != b[axis] for axis in a) == 1

    return [pair for pair in pairs if close(pair)]


def _tree(one: Scored) -> dict[str, Any]:
    languages = {
        name: {
            "count": scores.count,
            "exact_match": scores.interval._asdict(),
            "loss": scores.values.get("loss"),
            "fidelity": dict(scores.fidelity),
        }
        for name, scores in one.languages.items()
    }
    run = one.row.run
    return {
        "name": one.row.name,
        "run": run.name,
        "points": dict(run.points),
        "model": run.model,
        "languages": languages,
    }


def _cells(rows: Sequence[Scored]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table: points, then every metric that is known in every language."""
    axes = list(dict.fromkeys(axis for one in rows for axis in one.row.run.points))
    languages = list(dict.fromkeys(name for one in rows for name in one.languages))
    columns = [
        (language, metric)
        for language in languages
        for metric in METRICS
        if any(metric.name in scores.values for scores in _in(rows, language))
    ]
    head = ["run", *axes, *(f"{metric.column}, {language}" for language, metric in columns)]
    cells = [
        [
            one.row.name,
            *(one.row.run.points.get(axis, "") for axis in axes),
            *(_cell(one.languages.get(language), metric) for language, metric in columns),
        ]
        for one in rows
    ]
    return head, cells


def _in(rows: Sequence[Scored], language: str) -> list[Scores]:
    return [one.languages[language] for one in rows if language in one.languages]


def _cell(scores: Scores | None, metric: Metric) -> str:
    if scores is None or metric.name not in scores.values:
        return "-"
    if metric.name == "exact_match":
        return interval(scores.interval)
    return f"{scores.values[metric.name]:.{2 if metric.share else 4}f}"


def _markdown(
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    notes: Sequence[str],
    rows: Sequence[Scored],
    pairs: Sequence[Comparison],
) -> str:
    parts = [markdown_table(head, cells), *(f"{note}\n" for note in notes)]
    if close := neighbours(rows, pairs):
        parts.append(
            f"Pairs of runs that differ in one axis; pairs.json has all.\n\n"
            f"{comparison_table.describe(close, len(pairs))}"
        )
    return "\n".join(parts)
