"""Compares stored answers of several models on the same questions.

answers.jsonl of A, of B, ...  ->  questions paired by (task, language, id)
    ->  for every pair of models, task and language: scores, difference, p, p after Holm
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.fields import Fields
from mllm_jax.common.json_file import read_json
from mllm_jax.evaluation import significance
from mllm_jax.evaluation.answers import Line, read_answers

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"  # of a results folder
NO_SPREAD = 1e-9  # points; a standard error up to this is rounding of equal differences
Test = Literal["mcnemar", "bootstrap"]
Key = tuple[str, str, str]  # task, language, id


class Answers(NamedTuple):
    """One model's stored answers."""

    name: str  # the path, as it was given
    lines: dict[Key, Line]
    digests: dict[tuple[str, str], str]  # of the data, by task and language, where known


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
    low: float | None  # None: all differences are equal, so nothing is known of their spread
    high: float | None
    a_only: int  # questions that a answers better; of right-or-wrong tasks, that a alone answers
    b_only: int
    test: Test
    p: float
    p_holm: float  # over all comparisons of a call
    p_chi_square: float | None  # McNemar's, with correction; None for bootstrap
    smallest_difference: float | None  # None: as for `low`


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
    lines = {(x["task"], x["language"], x["id"]): x for x in read_answers(file)}
    return Answers(str(path), lines, _digests(path / SETTINGS))


def _digests(file: Path) -> dict[tuple[str, str], str]:
    """Of the questions, truths and images that a results folder was made with."""
    if not file.is_file():
        return {}
    tasks = Fields(str(file), read_json(file)).section("tasks", {})
    return {
        (task, language): of.section(language).text("data_sha256", "")
        for task in tasks.tree
        if (of := tasks.section(task).section("languages"))
        for language in of.tree
    }


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
        for model in models[1:]:
            _same_questions(models[0], model, len(shared))
            _same_digests(models[0], model)
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
    return [model._replace(lines={key: model.lines[key] for key in shared}) for model in models]


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


def _same_digests(first: Answers, second: Answers) -> None:
    for (task, language), digest in first.digests.items():
        other = second.digests.get((task, language), digest)
        require(
            digest == other,
            f"{first.name} and {second.name} are of different data: the digest of {task} in "
            f"{language} is {digest[:12]} and {other[:12]} ({SETTINGS}); evaluate both on the same "
            "data, or compare by id, whatever the images, with --common",
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
        test: of all tasks; None: McNemar where every answer is right or wrong, else bootstrap.

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
    spread = error > NO_SPREAD
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
        low=interval.low if spread else None,
        high=interval.high if spread else None,
        a_only=a_only,
        b_only=b_only,
        test=test,
        p=p,
        p_holm=p,
        p_chi_square=p_chi_square,
        smallest_difference=significance.smallest_difference(error) if spread else None,
    )
