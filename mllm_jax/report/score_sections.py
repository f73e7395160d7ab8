"""Sections about an evaluation: scores beside the majority answer, right and wrong answers."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape

from mllm_jax.report import html
from mllm_jax.report.views import Answer, Compared, Group, OtherAnswer, Scores, Variant

NOTE = (
    "Exact match; case and final punctuation are ignored. The mark on a bar is what the most "
    "frequent true answer of a kind would get, were it given to every question; a score at or "
    "below the mark shows no skill."
)

COMPARED = (
    "Exact match on the same held-out questions. Difference in points with its 95 % interval; p by "
    "McNemar's test, after Holm's correction; the last column is the smallest difference that so "
    "many questions show."
)


def variant_table(variants: Sequence[Variant]) -> str:
    """A row for each variant: exact match and loss of every language, and its stages."""
    languages = list(dict.fromkeys(key for v in variants if v.scores for key in v.scores.languages))
    rows = []
    for variant in variants:
        scores, cells = variant.scores, []
        for key in languages:
            known = scores is not None and key in scores.languages
            cells.append(_cell(overall(scores, key)) if scores and known else "–")
            cells.append(_number(scores.languages[key].get("loss") if scores and known else None))
        rows.append(html.row(variant.name, [*cells, escape(" → ".join(variant.stages))]))
    names = [(html.language_name(key), "loss per token") for key in languages]
    head = ["Variant", *(name for pair in names for name in pair), "stages"]
    return html.section("Variants", NOTE, html.table(head, rows, css="scores"))


def variant_scores(variants: Sequence[Variant]) -> str:
    """The scores of every variant, folded."""
    parts = [
        f"<details><summary>{escape(v.name)}</summary>{_table(v.scores)}</details>"
        for v in variants
        if v.scores is not None
    ]
    return html.section("Scores", "By kind of question.", "".join(parts)) if parts else ""


def score_table(scores: Scores) -> str:
    """Exact match per kind of question and language, beside the most frequent answer's."""
    return html.section("Scores", NOTE, _table(scores))


def _table(scores: Scores) -> str:
    cells = {(group.kind, group.language): group for group in scores.groups}
    kinds = list(dict.fromkeys(group.kind for group in scores.groups))
    rows = [
        html.row(
            scores.kinds.get(kind, kind),
            (_cell(cells.get((kind, key))) for key in scores.languages),
        )
        for kind in kinds
    ]
    if len(kinds) > 1:
        rows.append(html.row("All", (_cell(overall(scores, k)) for k in scores.languages), "all"))
    rows += [
        html.row(
            f"{key} per answer token".capitalize(),
            (_number(of.get(key)) for of in scores.languages.values()),
        )
        for key in ("loss", "perplexity")
    ]
    rows.append(html.row("95 % interval", map(partial(_interval, scores), scores.languages)))
    if scores.fidelity:
        cells = (_fidelity(scores.fidelity.get(key)) for key in scores.languages)
        rows.append(html.row("Answers in the question's language", cells))
    return html.table(["Question", *map(html.language_name, scores.languages)], rows, css="scores")


def _interval(scores: Scores, language: str) -> str:
    low, high = scores.intervals[language]
    return f"{html.percent(low)} to {html.percent(high)}<small>of exact match</small>"


def _fidelity(numbers: Mapping[str, float] | None) -> str:
    """Of answers, and beside it of what people wrote: the identifier's own accuracy."""
    if numbers is None:
        return "–"
    lines = []
    for name, share, undecided in (
        ("", "language_fidelity", "undecided"),
        ("of the true answers: ", "identifier_accuracy", "identifier_undecided"),
    ):
        text = html.percent(numbers[share] / 100) if share in numbers else "not decidable"
        if undecided in numbers:
            text += f" ({html.percent(numbers[undecided] / 100)} too short to tell)"
        lines.append(f"<small>{name}{text}</small>" if name else text)
    return "".join(lines)


def comparison(compared: Sequence[Compared]) -> str:
    """Whether the last stage answers better than earlier ones, language by language."""
    rows = [html.row(f"{one.before} → {one.after}", _compared(one)) for one in compared]
    head = ["Stages", "language", "before", "after", "difference", "only before", "only after"]
    table = html.table([*head, "p", "shows from"], rows)
    return html.section("Comparison", COMPARED, table) if rows else ""


def _compared(one: Compared) -> list[str]:
    difference = one.score_after - one.score_before
    interval = ""
    if one.interval is not None:
        interval = f"<small>[{one.interval[0]:+.1f}, {one.interval[1]:+.1f}]</small>"
    small = "–" if one.smallest is None else f"{one.smallest:.1f}"
    return [
        escape(html.language_name(one.language)),
        html.percent(one.score_before / 100),
        html.percent(one.score_after / 100),
        f"{difference:+.1f} {interval}",
        f"{one.before_only:,}",
        f"{one.after_only:,}",
        f"{one.p:.4f}" if one.p >= 1e-4 else f"{one.p:.1e}",
        small,
    ]


def overall(scores: Scores, language: str) -> Group:
    """The sums over all kinds of one language; the majority is that of each kind."""
    groups = [group for group in scores.groups if group.language == language]
    right, count, majority = (
        sum(getattr(group, key) for group in groups) for key in ("right", "count", "majority")
    )
    return Group("", language, right, count, majority, "")


def answer_sections(scores: Scores, variant: str = "") -> str:
    """Cards of the first answers of every kind and language, then of other wrong ones.

    Args:
        scores: the evaluation.
        variant: whose it is, where there are several.
    """
    if not scores.answers:
        return ""
    note = "The first of every kind and language, as they come. Pictures as the model gets them."
    if variant:
        note += f" The answer is that of {variant}; those of the others are below it."
    text = html.section("Answers", note, _cards(scores.answers))
    if scores.misses:
        text += html.section("Wrong answers", "Some of the others.", _cards(scores.misses))
    return text


def _cell(group: Group | None) -> str:
    if group is None or not group.count:
        return "–"
    share, majority = group.right / group.count, group.majority / group.count
    always = f"most frequent answer {html.percent(majority)}"
    if group.common:
        always += f" <q>{escape(_short(group.common))}</q>"
    return (
        f"{html.bar(share, majority)}<small>{group.right:,} of {group.count:,}</small>"
        f"<small>{always}</small>"
    )


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value < 1e4 else f"{value:.3g}"


def _cards(answers: Iterable[Answer]) -> str:
    return f"<div class=cards>{''.join(map(_card, answers))}</div>"


def _card(answer: Answer) -> str:
    pictures = _pictures(answer.pictures)
    mark = "<p class='mark right'>✓ right</p>" if answer.right else ""
    mark = mark or "<p class='mark wrong'>✗ wrong</p>"
    mark += "".join(map(_other, answer.others))
    css = f"card answer{'' if pictures else ' text'}{'' if answer.right else ' miss'}"
    # every text has a direction of its own, so that none turns the words around it
    attributes = f"dir=auto lang='{escape(answer.language, quote=True)}'"
    return (
        f"<article class='{css}'>{pictures}<div>"
        f"<p class=ask {attributes}>{escape(answer.question)}</p>"
        f"<p class=say {attributes}>{escape(answer.answer) or '(nothing)'}</p>"
        f"<p class=truth><span class=soft>truth:</span> "
        f"<bdi {attributes}>{escape(answer.truth)}</bdi></p>{mark}</div></article>"
    )


def _other(other: OtherAnswer) -> str:
    """What another variant answers, in a line."""
    text = f"<bdi dir=auto>{escape(other.answer) or '(nothing)'}</bdi>"
    mark = "✓" if other.right else "✗"
    return f"<p class=truth><span class=soft>{escape(other.variant)}:</span> {text} {mark}</p>"


def _pictures(pictures: Sequence) -> str:
    items = [
        f"<p class=free>{escape(picture)}</p>"
        if isinstance(picture, str)
        else html.picture(picture, "the picture asked about, as the model gets it")
        for picture in pictures
    ]
    return f"<div>{''.join(items)}</div>" if items else ""
