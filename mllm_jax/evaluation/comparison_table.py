"""`mllm-jax compare`: reads the answers, prints the comparisons as a table, writes them as JSON."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from mllm_jax.common.errors import require
from mllm_jax.common.folders import check_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.evaluation import significance
from mllm_jax.evaluation.comparison import Comparison, Test, compare, load, pair_up
from mllm_jax.evaluation.significance import ALPHA

HEAD = (
    "models",
    "task",
    "language",
    "n",
    "first",
    "second",
    "difference [95 %]",
    "first only",
    "second only",
    "test",
    "p",
    "p (Holm)",
    "shows from",
)


def compare_files(
    paths: Sequence[Path],
    test: Test | None = None,
    common: bool = False,
    json_file: Path | None = None,
) -> list[Comparison]:
    """Compares results folders or answer files, prints the table and writes the JSON file.

    Args:
        paths: at least two.
        test: for all tasks. None: McNemar where every answer is right or wrong, else bootstrap.
        common: leave out questions that not all have answered.
        json_file: gets {"pairs": [...]}, see `Comparison`.

    Raises:
        ConfigError: fewer than two; a file cannot be read; they do not answer the same questions;
            McNemar is asked of fractions.
    """
    require(len(paths) >= 2, f"{paths[0]}: one model; give two results folders or more")
    twice = [path for path in paths if sum(path.resolve() == p.resolve() for p in paths) > 1]
    require(not twice, f"{twice[0] if twice else ''}: is there twice; give each model once")
    if json_file is not None:
        check_file(json_file)
    models = pair_up([load(path) for path in paths], common)
    comparisons = compare(models, test)
    if json_file is not None:
        write_json(json_file, {"pairs": [row._asdict() for row in comparisons]})
    print(describe(comparisons), end="", flush=True)
    return comparisons


def describe(comparisons: Sequence[Comparison], corrected: int | None = None) -> str:
    """The models' letters, the table, and how to read it.

    Args:
        comparisons: some or all of a call.
        corrected: over how many p is corrected; all that are here when None.
    """
    names = list(dict.fromkeys(name for row in comparisons for name in (row.a, row.b)))
    labels = dict(zip(names, _letters(), strict=False))
    legend = "".join(f"{label} = {name}\n" for name, label in labels.items())
    table = markdown_table(HEAD, [_cells(row, labels) for row in comparisons])
    return f"{legend}\n{table}\n{_notes(comparisons, corrected)}"


def _letters() -> Iterator[str]:
    for size in itertools.count(1):
        for letters in itertools.product("ABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=size):
            yield "".join(letters)


def _cells(row: Comparison, labels: dict[str, str]) -> tuple[str, ...]:
    smallest = row.smallest_difference
    known = row.low is not None and row.high is not None
    interval = f"[{row.low:+.2f}, {row.high:+.2f}]" if known else "[-]"
    return (
        f"{labels[row.a]}, {labels[row.b]}",
        row.task,
        row.language,
        f"{row.count:,}",
        f"{row.score_a:.2f}",
        f"{row.score_b:.2f}",
        f"{row.difference:+.2f} {interval}",
        f"{row.a_only:,}",
        f"{row.b_only:,}",
        row.test,
        probability(row.p),
        probability(row.p_holm) + (" *" if row.p_holm < ALPHA else ""),
        "-" if smallest is None else f"{smallest:.2f}",
    )


def probability(p: float) -> str:
    """0.0414; a small one as 1.2e-07."""
    return f"{p:.4f}" if p >= 1e-4 or p == 0 else f"{p:.1e}"


def _notes(comparisons: Sequence[Comparison], corrected: int | None) -> str:
    tests = {row.test: "" for row in comparisons}
    lines = [f"* p (Holm) < {ALPHA}, corrected over {corrected or len(comparisons)} comparison(s)."]
    lines.append(
        f"shows from: the smallest difference that so many questions show with "
        f"{100 * significance.POWER:.0f} % probability, in points."
    )
    if "bootstrap" in tests:
        draws = f"{significance.DRAWS:,}"
        lines.append(f"bootstrap: {draws} resamples, percentile interval; for scores in fractions.")
    alike = [row for row in comparisons if row.groups < row.count and row.test == "mcnemar"]
    for row in {(row.task, row.language): row for row in alike}.values():
        lines.append(
            f"{row.task}, {row.language}: {row.count:,} questions about {row.groups:,} images or "
            "passages. The interval counts that, McNemar's p does not; --test bootstrap does."
        )
    return "".join(f"{line}\n" for line in lines)
