"""Compares stored answers of several models on the same questions: `mllm-jax compare`.

answers.jsonl of A, of B, ...  ->  questions paired by (task, language, id)
    ->  for every pair of models, task and language: scores, difference, p, p after Holm
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.folders import check_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.evaluation import significance
from mllm_jax.evaluation.answers import Line, read_answers
from mllm_jax.evaluation.significance import ALPHA

ANSWERS = "answers.jsonl"
Test = Literal["mcnemar", "bootstrap"]
Key = tuple[str, str, str]  # task, language, id
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


class Answers(NamedTuple):
    """One model's stored answers."""

    name: str  # the path, as it was given
    lines: dict[Key, Line]


class Comparison(NamedTuple):
    """Two models on one task in one language; a field of `--json`'s pairs each.

    Scores and differences are in percent (points), b's taken from a's.
    """

    a: str
    b: str
    task: str
    language: str
    count: int  # questions
    groups: int  # images or passages that they are about
    score_a: float
    score_b: float
    difference: float
    low: float
    high: float
    a_only: int  # questions that a answers better; of right-or-wrong tasks, that a alone answers
    b_only: int
    test: Test
    p: float
    p_holm: float  # over all comparisons of a call
    p_chi_square: float | None  # McNemar's, with correction; None for bootstrap
    smallest_difference: float | None  # None: the two never differ, so nothing is known of it


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


def load(path: Path) -> Answers:
    """The answers of a results folder, or of an answers.jsonl.

    Raises:
        ConfigError: see `read_answers`; a folder without one.
    """
    file = path / ANSWERS if path.is_dir() else path
    require(
        file.is_file() or not path.is_dir(),
        f"{path}: no {ANSWERS} in this folder; give a folder that `mllm-jax evaluate --out` wrote",
    )
    lines = read_answers(file)
    return Answers(str(path), {(x["task"], x["language"], x["id"]): x for x in lines})


def pair_up(models: Sequence[Answers], common: bool = False) -> list[Answers]:
    """The models with the same questions each, in the order of the first.

    Args:
        models: at least two.
        common: leave out questions that not all have answered, and say how many.

    Raises:
        ConfigError: without `common`, some are not answered by all; nothing is in common; a
            question has another text or truth in two files, so that they are of different data.
    """
    shared = [key for key in models[0].lines if all(key in other.lines for other in models[1:])]
    if not common:
        for model in models:
            _same_questions(models[0], model, len(shared))
    require(
        len(shared) > 0,
        f"{models[0].name}: no question in common with {models[1].name}: tasks, languages and ids "
        "all differ; evaluate both on the same data",
    )
    for model in models[1:]:
        _same_data(models[0], model, shared)
    for model in models if common else ():
        if others := len(model.lines) - len(shared):
            print(f"{model.name}: {others:,} questions left out, not answered by all", flush=True)
    return [Answers(model.name, {key: model.lines[key] for key in shared}) for model in models]


def _same_questions(first: Answers, second: Answers, shared: int) -> None:
    only = [
        [key for key in one.lines if key not in other.lines]
        for one, other in ((first, second), (second, first))
    ]
    if not (only[0] or only[1]):
        return
    task, language, name = (only[0] or only[1])[0]
    remedy = "evaluate both on the same questions"
    remedy += f", or compare the {shared:,} that all share with --common" if shared else ""
    raise ConfigError(
        f"{len(only[0]):,} questions are only in {quoted(first.name, 80)}, {len(only[1]):,} only "
        f"in {quoted(second.name, 80)}, as {quoted(name, 40)} of {task} in {language}; {remedy}"
    )


def _same_data(first: Answers, second: Answers, keys: Sequence[Key]) -> None:
    """Refuses another truth for one question; another wording is told, it may be a prompt's."""
    reworded = []
    for key in keys:
        one, other = first.lines[key], second.lines[key]
        require(
            one["truth"] == other["truth"],
            f"{first.name} and {second.name} are of different data: the truth of "
            f"{quoted(key[2], 40)} ({key[0]}, {key[1]}) is {quoted(one['truth'], 50)} and "
            f"{quoted(other['truth'], 50)}; evaluate both on the same data",
        )
        if one["question"] != other["question"]:
            reworded.append(key[2])
    if reworded:
        print(
            f"{first.name}, {second.name}: {len(reworded):,} questions were asked in other words, "
            f"as {quoted(reworded[0], 40)}; compared by id",
            flush=True,
        )


# ------------------------------------------------------------------------------------ comparing


def compare(models: Sequence[Answers], test: Test | None = None) -> list[Comparison]:
    """Every pair of models on every task and language; p corrected over all of them (Holm).

    Args:
        models: with the same questions each, see `pair_up`.
        test: see `compare_files`.

    Raises:
        ConfigError: McNemar is asked of a task whose scores are fractions.
    """
    cells: dict[tuple[str, str], list[Key]] = {}
    for key in models[0].lines:
        cells.setdefault(key[:2], []).append(key)
    tests: dict[str, Test] = {task: _test(models, task, test) for task, _ in cells}
    rows = [
        _comparison(first, second, keys, tests[task])
        for first, second in itertools.combinations(models, 2)
        for (task, _), keys in cells.items()
    ]
    corrected = significance.holm([row.p for row in rows])
    return [row._replace(p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def _test(models: Sequence[Answers], task: str, test: Test | None) -> Test:
    """The test of a task: the one that was asked for, or the one that its scores allow."""
    scores = {x["correct"] for model in models for key, x in model.lines.items() if key[0] == task}
    fractions = scores - {0, 1}
    require(
        test != "mcnemar" or not fractions,
        f"--test mcnemar: {task} scores answers in fractions, as {max(fractions, default=0):.4g}, "
        "and McNemar needs right or wrong; give --test bootstrap, or no --test",
    )
    return test or ("bootstrap" if fractions else "mcnemar")


def _comparison(first: Answers, second: Answers, keys: Sequence[Key], test: Test) -> Comparison:
    a, b = (
        100 * np.array([model.lines[key]["correct"] for key in keys], np.float64)
        for model in (first, second)
    )
    # a question without a group is one by itself; no text of JSON's paths begins with NUL
    groups = [first.lines[key]["group"] or f"\0{key[2]}" for key in keys]
    difference, alone = a - b, len(set(groups)) == len(groups)
    error = significance.standard_error(difference, None if alone else groups)
    a_only, b_only = int((difference > 0).sum()), int((difference < 0).sum())
    p_chi_square = None
    if test == "mcnemar":
        interval = significance.confidence_interval(float(difference.mean()), error)
        p = significance.mcnemar(a_only, b_only)
        p_chi_square = significance.mcnemar(a_only, b_only, "chi_square_corrected")
    else:
        interval, p = significance.paired_bootstrap(difference, None if alone else groups)
    return Comparison(
        a=first.name,
        b=second.name,
        task=keys[0][0],
        language=keys[0][1],
        count=len(keys),
        groups=len(set(groups)),
        score_a=float(a.mean()),
        score_b=float(b.mean()),
        difference=float(difference.mean()),
        low=interval.low,
        high=interval.high,
        a_only=a_only,
        b_only=b_only,
        test=test,
        p=p,
        p_holm=p,
        p_chi_square=p_chi_square,
        smallest_difference=significance.smallest_difference(error) if error else None,
    )


# --------------------------------------------------------------------------------------- the table


def describe(comparisons: Sequence[Comparison]) -> str:
    """The models' letters, the table, and how to read it."""
    names = list(dict.fromkeys(name for row in comparisons for name in (row.a, row.b)))
    labels = dict(zip(names, _letters(), strict=False))
    legend = "".join(f"{label} = {name}\n" for name, label in labels.items())
    table = markdown_table(HEAD, [_cells(row, labels) for row in comparisons])
    return f"{legend}\n{table}\n{_notes(comparisons)}"


def _letters() -> Iterator[str]:
    for size in itertools.count(1):
        for letters in itertools.product("ABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=size):
            yield "".join(letters)


def _cells(row: Comparison, labels: dict[str, str]) -> tuple[str, ...]:
    smallest = row.smallest_difference
    return (
        f"{labels[row.a]}, {labels[row.b]}",
        row.task,
        row.language,
        f"{row.count:,}",
        f"{row.score_a:.2f}",
        f"{row.score_b:.2f}",
        f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]",
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


def _notes(comparisons: Sequence[Comparison]) -> str:
    tests = {row.test: "" for row in comparisons}
    lines = [f"* p (Holm) < {ALPHA}, corrected over {len(comparisons)} comparison(s)."]
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
