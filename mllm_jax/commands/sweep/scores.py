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
from mllm_jax.evaluation.fidelity import human_texts, line_fidelity
from mllm_jax.evaluation.language_id import LanguageIdentifier, open_identifier
from mllm_jax.evaluation.metrics.word_fidelity import own_words, word_fidelity
from mllm_jax.evaluation.results import tables, write


class Metric(NamedTuple):
    """A column of the table, and a figure."""

    name: str
    column: str  # its heading in the table
    title: str  # of the figure
    share: bool  # in percent; otherwise a number as it is


METRICS = (
    Metric("exact_match", "match", "exact match", True),
    Metric("loss", "loss", "loss of the true answers, nats a token", False),
    Metric("fidelity", "in language", "answers in the question's language", True),
)

MOST_UNDECIDED = 50.0  # percent of the true answers; with more, words tell the language
BY_WORDS = (
    "in language: told by the words of the true answers, of which most are too short for the "
    "language identifier; answers with words of no language or of several are left out"
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
    notes: dict[str, None] = {}
    identifier = _identifier(notes)
    scored = []
    for row in plan.rows:
        if not is_finished(row, out):
            continue
        folder = out / EVALUATION / row.name
        losses = read_json(folder / write.SCORES)["languages"]
        answers = read_answers(folder / write.ANSWERS)
        own = {
            name: [x for x in answers if x["language"] == name] for name in languages_of(answers)
        }
        fidelity = _fidelity(own, identifier, notes)
        languages = {name: _scores(of, losses[name], fidelity[name]) for name, of in own.items()}
        scored.append(Scored(row, languages))
    by_words = any(
        of.fidelity.get("identifier_undecided", 100.0) > MOST_UNDECIDED and "fidelity" in of.values
        for one in scored
        for of in one.languages.values()
    )
    return scored, [*notes, *([BY_WORDS] if by_words else [])]


def _scores(
    lines: Sequence[Line], losses: Mapping[str, Any], fidelity: Mapping[str, float]
) -> Scores:
    mean = tables.mean(lines)
    decided = fidelity.get("identifier_undecided", 100.0) <= MOST_UNDECIDED
    values = {
        "exact_match": mean.mean,
        "loss": losses["loss"],
        "fidelity": fidelity.get("language_fidelity" if decided else "word_fidelity"),
    }
    known = {name: value for name, value in values.items() if value is not None}
    return Scores(len(lines), known, mean, fidelity)


def _identifier(notes: dict[str, None]) -> LanguageIdentifier | None:
    try:
        return open_identifier()
    except ConfigError as error:
        notes[f"the language of answers is not identified: {error}"] = None
        return None


def _fidelity(
    own: Mapping[str, Sequence[Line]],
    identifier: LanguageIdentifier | None,
    notes: dict[str, None],
) -> dict[str, dict[str, float]]:
    """Both kinds of fidelity of the answers in every language, as far as they can be told."""
    candidates = list(own if len(own) > 1 else dict.fromkeys([*own, "en"]))
    truths = {name: [t for x in of for t in human_texts(x["truth"])] for name, of in own.items()}
    words = own_words(truths)
    numbers: dict[str, dict[str, float]] = {name: {} for name in own}
    for name, lines in own.items():
        if identifier is not None and len(candidates) > 1:
            try:
                numbers[name] |= line_fidelity(lines, candidates, identifier)
            except ConfigError as error:  # a language that the identifier does not know
                notes[f"the language of answers is not identified: {error}"] = None
        if len(own) > 1:
            numbers[name] |= word_fidelity([line["answer"] for line in lines], name, words)
    return numbers
