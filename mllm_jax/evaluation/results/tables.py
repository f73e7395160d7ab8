"""Computes the numbers of a results folder and writes them as tables: Markdown, JSON, LaTeX."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mllm_jax.common.markdown import markdown_table
from mllm_jax.evaluation import significance
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.extras import NOTHING, Extra
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.task import Question

_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {character: f"\\{character}" for character in "&%$#_{}"}


class Mean(NamedTuple):
    """The mean score of the answers with its 95 % confidence interval, in percent."""

    mean: float
    low: float
    high: float
    groups: int  # images or passages that the questions are about
    method: str  # "wilson" of independent right-or-wrong answers, "normal", "clustered"


class Result(NamedTuple):
    """A task in a language."""

    task: TableTask
    language: str
    questions: Sequence[Question]
    lines: Sequence[Line]  # of each question
    metrics: dict[str, float]
    mean: Mean | None  # None: the task does not say how good an answer is, as perplexity
    extra: Extra = NOTHING
    without_images: Sequence[Line] = ()  # answers to questions asked without their images, too

    @property
    def unparseable(self) -> int:
        """Answers from which nothing could be read."""
        return sum(line["parsed"] is None for line in self.lines)


def result(
    task: TableTask,
    language: str,
    questions: Sequence[Question],
    lines: Sequence[Line],
    extra: Extra = NOTHING,
    without_images: Sequence[Line] = (),
) -> Result:
    """The numbers of the answers to a task in a language; see `Result` for the arguments."""
    whole = None if task.kind == "perplexity" else mean(lines)
    metrics = task.metrics(lines)
    return Result(task, language, questions, lines, metrics, whole, extra, without_images)


def mean(lines: Sequence[Line]) -> Mean:
    """The mean of `correct`: Wilson's interval where answers are independent and right or wrong, or
    all alike; else from the standard error, clustered where several questions are about one image.
    """
    values = np.array([line["correct"] for line in lines], np.float64)
    names = [line["group"] or f"\0{line['id']}" for line in lines]
    right, groups = float(values.sum()), len(set(names))
    share, binary = right / len(values), bool(np.isin(values, (0, 1)).all())
    alone = groups == len(lines)
    error = significance.standard_error(values, None if alone else names)
    # all alike: the error says nothing, the number of groups does; fractions vary less
    if (binary and alone) or error < 1e-12:
        low, high = significance.wilson_interval(right * groups / len(values), groups)
        method = "wilson"
    else:
        low, high = significance.confidence_interval(share, error)
        method = "normal" if alone else "clustered"
    return Mean(100 * share, 100 * max(low, 0.0), 100 * min(high, 1.0), groups, method)


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """{"task", "language", "count", "metrics", "unparseable", "correct"} of each, not rounded.

    With chrF and BLEU also their "signatures".
    """
    return [
        {
            "task": one.task.name,
            "language": one.language,
            "count": len(one.lines),
            "metrics": {**one.metrics, **one.extra.numbers},
            "unparseable": one.unparseable,
            "correct": None if one.mean is None else one.mean._asdict(),
            **({"signatures": dict(one.extra.signatures)} if one.extra.signatures else {}),
        }
        for one in results
    ]


def markdown(results: Sequence[Result]) -> str:
    """A table for each task: a row for each number, a column for each language."""
    parts = []
    for group in by_task(results):
        head = (group[0].task.name, *(one.language for one in group))
        parts.append(markdown_table(head, rows(group)))
        signatures = group[0].extra.signatures
        if signatures:
            parts.append("".join(f"- {name}: `{text}`\n" for name, text in signatures.items()))
    return "\n".join(parts)


def latex(results: Sequence[Result]) -> str:
    """The same as LaTeX tables; needs the package booktabs."""
    return "\n".join(map(_latex_table, by_task(results)))


def by_task(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each task, in order."""
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(one.task.name, []).append(one)
    return list(groups.values())


def rows(group: Sequence[Result]) -> list[tuple[str, ...]]:
    """Questions, metrics, unparseable answers, and the mean score with its interval."""
    columns = [
        {
            "questions": f"{len(one.lines):,}",
            **one.task.printed(one.metrics),
            **one.extra.printed,
            **({} if one.mean is None else {"mean score [95 %]": interval(one.mean)}),
        }
        for one in group
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, *(column.get(name, "-") for column in columns)) for name in names]


def interval(of: Mean) -> str:
    """ "84.10 [83.02, 85.18]"."""
    return f"{of.mean:.2f} [{of.low:.2f}, {of.high:.2f}]"


def _latex_table(group: Sequence[Result]) -> str:
    return latex_table((group[0].task.name, *(one.language for one in group)), rows(group))


def latex_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A LaTeX table of the package booktabs, the first column to the left, others to the right."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _latex_row(head),
        r"\midrule",
        *map(_latex_row, cells),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _latex_row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(map(_escaped, cells))} \\"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)
