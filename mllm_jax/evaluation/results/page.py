"""Writes results.html: numbers, figure and answers with their pictures, filtered without a script.

A choice in a group of buttons hides cards by a rule of the style sheet:
    body:has(#task-1:checked) .card:not(.task-1) { display: none }
"""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from PIL import Image

from mllm_jax.common.errors import ConfigError, one_line
from mllm_jax.data.images import decode
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.results import figure, tables
from mllm_jax.evaluation.results.settings import Tree
from mllm_jax.evaluation.tasks.task import Question
from mllm_jax.report import html

CARDS = 600  # on the page, at most, but for FEWEST of every group
MOST, FEWEST = 40, 4  # of a task, language and outcome
SIDE = 176  # pixels of a picture's longer side
LOSSLESS = 4096  # bytes of a PNG; a photograph becomes a JPEG
OUTCOMES = {"right": "✓ right", "wrong": "✗ wrong", "unread": "? unparseable"}
Pairs = Sequence[tuple[Line, Question]]


def page(results: Sequence[tables.Result], tree: Tree) -> str:
    """The page's text."""
    names = list(dict.fromkeys(one.task.name for one in results))
    languages = list(dict.fromkeys(one.language for one in results))
    cards, shown = [], 0
    groups = [(one, name, of) for one in results for name, of in _outcomes(one).items()]
    each = max(FEWEST, min(MOST, CARDS // max(len(groups), 1)))
    for one, outcome, pairs in groups:
        css = f"task-{names.index(one.task.name)} language-{languages.index(one.language)}"
        alone = {line["id"]: line["answer"] for line in one.without_images}
        for line, question in pairs[:each]:
            without = alone.get(line["id"])
            cards.append(_card(one, outcome, css, line, question, without))
        shown += len(pairs[:each])
    filters = {
        "task": dict(enumerate(names)),
        "language": {n: html.language_and_code(code) for n, code in enumerate(languages)},
        "outcome": dict(enumerate(OUTCOMES.values())),
    }
    total = sum(len(one.lines) for one in results)
    note = f"{shown:,} of {total:,} answers: the first {each} of every task, language and outcome."
    if shown == total:
        note = f"All {total:,} answers."
    answers = html.section(
        "Answers", note, _form(filters) + f"<div class=cards>{''.join(cards)}</div>"
    )
    body = (
        _head(tree, total)
        + html.section("Numbers", _NOTE, "".join(map(_table, tables.by_task(results))))
        + html.section("Mean scores", "", figure.svg(results) or "<p>None.</p>")
        + f"<style>{''.join(_rules(filters))}</style>"
        + answers
        + html.section("Settings", "All of them are in settings.json.", html.facts(_facts(tree)))
    )
    return html.document("Results", body, "style.css", "results.css")


_NOTE = (
    "Shares in percent. The interval is of the mean score of the answers: Wilson's where they are "
    "right or wrong and independent, else from the standard error, clustered by image or passage "
    "where several questions are about one."
)


def _head(tree: Tree, total: int) -> str:
    model = str(tree["model"]).rstrip("/").rsplit("/", 1)[-1]
    tasks = tree["tasks"]
    languages = {name for of in tasks.values() for name in of["languages"]}
    pairs = [
        ("answers", f"{total:,}"),
        ("tasks", f"{len(tasks)}"),
        ("languages", f"{len(languages)}"),
    ]
    return (
        f"<header><h1>Results of {escape(model)}</h1>"
        f"<p class=soft>{escape(', '.join(tasks))}</p>{html.figures(pairs)}</header>\n"
    )


def _table(group: Sequence[tables.Result]) -> str:
    """The numbers of a task: a row for each, a column for each language."""
    head = [group[0].task.name, *(html.language_and_code(one.language) for one in group)]
    rows = [html.row(name, [escape(cell) for cell in cells]) for name, *cells in tables.rows(group)]
    return html.table(head, rows)


def _facts(tree: Tree) -> Iterator[tuple[str, str]]:
    for name in ("model", "model_sha256", "template_sha256", "compute", "rows", "device"):
        yield name, str(tree[name])
    if "fidelity" in tree:
        languages = ", ".join(tree["fidelity"]["languages"])
        yield "language identified by", f"{tree['fidelity']['identifier']} among {languages}"
    yield "versions", ", ".join(f"{name} {text}" for name, text in tree["versions"].items())


# ---------------------------------------------------------------------------------------- filters


def _form(filters: dict[str, dict[int, str]]) -> str:
    return f"<form class=filters>{''.join(_buttons(*pair) for pair in filters.items())}</form>"


def _buttons(name: str, choices: dict[int, str]) -> str:
    labels = [f"<label><input type=radio name={name} checked>all</label>"]
    labels += [
        f"<label><input type=radio name={name} id={name}-{n}>{escape(text)}</label>"
        for n, text in choices.items()
    ]
    return f"<fieldset><legend>{name}</legend>{''.join(labels)}</fieldset>"


def _rules(filters: dict[str, dict[int, str]]) -> Iterator[str]:
    for name, choices in filters.items():
        for n in choices:
            yield f"body:has(#{name}-{n}:checked) .card:not(.{name}-{n}){{display:none}}\n"


# ---------------------------------------------------------------------------------------- answers


def _outcomes(one: tables.Result) -> dict[str, Pairs]:
    """The answers of a result that are right, wrong or unparseable; those of them that exist."""
    groups: dict[str, list[tuple[Line, Question]]] = {name: [] for name in OUTCOMES}
    for line, question in zip(one.lines, one.questions, strict=True):
        groups[_outcome(one, line)].append((line, question))
    return {name: pairs for name, pairs in groups.items() if pairs}


def _outcome(one: tables.Result, line: Line) -> str:
    if line["parsed"] is None and one.task.kind != "perplexity":
        return "unread"
    return "right" if line["correct"] >= 0.5 else "wrong"


def _card(
    one: tables.Result, outcome: str, css: str, line: Line, question: Question, without: str | None
) -> str:
    pictures = "".join(_picture(image) for image in question.images)
    number = list(OUTCOMES).index(outcome)
    border = {"right": "", "wrong": " miss", "unread": " unread"}[outcome]
    shape = "" if pictures else " text"
    score = "" if line["correct"] in (0, 1) else f", score {line['correct']:.2f}"
    attributes = f"dir=auto lang='{escape(one.language, quote=True)}'"
    return (
        f"<article class='card answer{shape} {css} outcome-{number}{border}'>"
        f"{f'<div>{pictures}</div>' if pictures else ''}<div>"
        f"<p class=ask {attributes}>{escape(question.text)}</p>"
        f"{_answer(line, attributes)}"
        f"{'' if without is None else _without(without, attributes)}"
        f"<p class=truth><span class=soft>truth:</span> <bdi {attributes}>{_truth(line)}</bdi></p>"
        f"<p class='mark {outcome}'>{OUTCOMES[outcome]}{score}</p>"
        f"<p class=id>{escape(one.task.name)} · {escape(one.language)} · {escape(line['id'])}</p>"
        "</div></article>"
    )


def _answer(line: Line, attributes: str) -> str:
    """The text; where nothing was generated the options with their log-likelihoods."""
    if "answer_ids" in line or not line["options"]:
        return f"<p class=say {attributes}>{escape(line['answer']) or '(nothing)'}</p>"
    items = "".join(
        f"<li{' class=chosen' if str(n) == line['parsed'] else ''} {attributes}>{escape(option)} "
        f"<span class=soft>{value:.2f}</span></li>"
        for n, (option, value) in enumerate(
            zip(line["options"], line["log_likelihoods"], strict=True)
        )
    )
    return f"<ol class=options start=0>{items}</ol>"


def _without(answer: str, attributes: str) -> str:
    """What the model answers if it does not see the picture."""
    text = f"<bdi {attributes}>{escape(answer) or '(nothing)'}</bdi>"
    return f"<p class=truth><span class=soft>without the picture:</span> {text}</p>"


def _truth(line: Line) -> str:
    truth = line["truth"]
    if isinstance(truth, list):
        truth = ", ".join(dict.fromkeys(map(str, truth)))
    return escape(one_line(str(truth), 400))


def _picture(image: str | bytes) -> str:
    """A thumbnail, or why there is none."""
    try:
        opened = Image.fromarray(decode.decode(image))
    except ConfigError as error:
        return f"<p class=free>{escape(one_line(str(error), 120))}</p>"
    opened.thumbnail((SIDE, SIDE))
    return html.picture(np.asarray(opened), "the picture asked about", LOSSLESS)
