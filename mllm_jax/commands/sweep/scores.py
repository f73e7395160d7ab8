"""What the evaluations of a sweep measured: a score for every row, language and metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.commands.recipe.tree import EVALUATION
from mllm_jax.commands.sweep.plan import Plan, Row
from mllm_jax.commands.sweep.work import is_finished
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.json_file import read_json
from mllm_jax.evaluation.answers import Line, languages_of, read_answers
from mllm_jax.evaluation.fidelity import line_fidelity
from mllm_jax.evaluation.language_id import LanguageIdentifier, open_identifier
from mllm_jax.evaluation.results import tables, write


class Metric(NamedTuple):
    """A column of the table, and a figure."""

    name: str
    column: str  # its heading in the table
    title: str  # of the figure
    share: bool  # in percent; otherwise a number as it is


METRICS = (
    Metric("exact_match", "match", "exact match", True),
    Metric("loss", "loss", "loss, nats a token", False),
    Metric("language_fidelity", "in language", "answers in the question's language", True),
)


class Scores(NamedTuple):
    """Of a row in a language."""

    count: int  # questions
    values: Mapping[str, float]  # metric -> value, percent or nats; what is not known is absent
    interval: tables.Mean  # of exact match
    fidelity: Mapping[str, float]  # see `evaluation.fidelity`


class Scored(NamedTuple):
    """A finished row."""

    row: Row
    languages: Mapping[str, Scores]


def read_scores(plan: Plan, out: Path) -> tuple[list[Scored], list[str]]:
    """The finished rows of a plan with their scores, and lines about what is not known.

    Raises:
        ConfigError: damaged results (named).
    """
    finished = [row for row in plan.rows if is_finished(row, out)]
    identifier, notes = _identifier()
    scored = []
    for row in finished:
        folder = out / EVALUATION / row.name
        losses = read_json(folder / write.SCORES)["languages"]
        lines = read_answers(folder / write.ANSWERS)
        languages = languages_of(lines)
        own = {name: [x for x in lines if x["language"] == name] for name in languages}
        scored.append(
            Scored(row, {name: _scores(of, losses[name], languages, identifier, notes)
                         for name, of in own.items()})
        )  # fmt: skip
    return scored, list(notes)


def _identifier() -> tuple[LanguageIdentifier | None, dict[str, None]]:
    try:
        return open_identifier(), {}
    except ConfigError as error:
        return None, {f"the language of answers is not identified: {error}": None}


def _scores(
    lines: Sequence[Line],
    losses: Mapping[str, Any],
    languages: Sequence[str],
    identifier: LanguageIdentifier | None,
    notes: dict[str, None],
) -> Scores:
    mean, fidelity = tables.mean(lines), {}
    candidates = list(languages if len(languages) > 1 else dict.fromkeys([*languages, "en"]))
    if identifier is not None and len(candidates) > 1:
        try:
            fidelity = line_fidelity(lines, candidates, identifier)
        except ConfigError as error:  # a language that the identifier does not know
            notes[f"the language of answers is not identified: {error}"] = None
    values = {"exact_match": mean.mean, "loss": losses["loss"]} | fidelity
    known = {m.name: values[m.name] for m in METRICS if values.get(m.name) is not None}
    return Scores(len(lines), known, mean, fidelity)
