"""The page of `mllm-jax corpus decontaminate`: training and evaluation records side by side."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mllm_jax.report import html


class Side(NamedTuple):
    """One record of a pair."""

    file: str
    id: str
    language: str
    pixels: UInt8[np.ndarray, "height width 3"] | None
    text: str
    marked: Sequence[tuple[int, int]] = ()  # first character and end of what both texts have


class PairView(NamedTuple):
    """A training record and the evaluation record beside it."""

    data: Side
    task: Side
    note: str


class SetRow(NamedTuple):
    """A line of the table of evaluation sets."""

    name: str
    records: int
    images: int
    texts: int
    image_pairs: int
    text_pairs: int
    rows: int  # training rows that share something with it


class DecontaminationView(NamedTuple):
    """What the page shows."""

    data: str
    records: int
    images: int
    texts: int
    rows: int  # to leave out
    refused: Sequence[str]  # rows that could not be read: the first ones
    refused_count: int
    sets: Sequence[SetRow]
    pictures: Sequence[PairView]  # the first ones
    texts_shown: Sequence[PairView]
    how: str  # to leave rows out
    compared: str  # what counts as a match


def decontamination_page(view: DecontaminationView) -> str:
    """The page's text."""
    title = "Training data beside evaluation data"
    pictures = sum(row.image_pairs for row in view.sets)
    texts = sum(row.text_pairs for row in view.sets)
    parts = {
        "sets": html.section("Evaluation sets", view.compared, _sets(view.sets)),
        "pictures": _pairs("Pictures", pictures, view.pictures),
        "texts": _pairs("Texts", texts, view.texts_shown),
        "unread": _refused(view),
    }
    names = {"sets": "Sets", "pictures": "Pictures", "texts": "Texts", "unread": "Not read"}
    parts = {name: text for name, text in parts.items() if text}
    links = " ".join(f"<a href='#{name}'>{names[name]}</a>" for name in parts)
    figures = html.figures(
        [
            ("training records", f"{view.records:,}"),
            ("pictures and texts", f"{view.images:,}\N{NO-BREAK SPACE}+ {view.texts:,}"),
            ("pairs of pictures", f"{pictures:,}"),
            ("pairs of texts", f"{texts:,}"),
            ("records to leave out", f"{view.rows:,}"),
        ]
    )
    head = (
        f"<header><h1>{title}</h1><p class=soft>{escape(view.data)}</p>{figures}"
        f"<p class=note>{escape(view.how)}</p><nav>{links}</nav></header>\n"
    )
    body = "".join(f"<div id={name}>{text}</div>" for name, text in parts.items())
    return html.document(title, head + body, "style.css", "decontamination.css")


def _sets(rows: Sequence[SetRow]) -> str:
    head = ("set", "records", "pictures", "texts", "same pictures", "same texts", "left out")
    return html.table(head, [html.row(row.name, [f"{n:,}" for n in row[1:]]) for row in rows])


def _pairs(title: str, total: int, views: Sequence[PairView]) -> str:
    if total == 0:
        return html.section(title, "None is in both.", "")
    note = "" if len(views) == total else f"The first {len(views):,} of {total:,} pairs."
    cards = "".join(_card(view) for view in views)
    return html.section(title, note, f"<div class=pairs>{cards}</div>")


def _card(view: PairView) -> str:
    sides = _side("Training", view.data) + _side("Evaluation", view.task)
    note = f"<p class=note>{escape(view.note)}</p>" if view.note else ""
    return f"<div class=card><div class=pair>{sides}</div>{note}</div>"


def _side(title: str, side: Side) -> str:
    image = "" if side.pixels is None else html.picture(side.pixels, f"{title}: {side.id}")
    language = "" if side.language == "und" else f", {html.language_and_code(side.language)}"
    text = f"<p class=text>{_marked(side)}</p>" if side.text else ""
    return (
        f"<div><h4>{title}: {escape(side.file)}</h4>{image}"
        f"<p class=id>{escape(side.id)}{escape(language)}</p>{text}</div>"
    )


def _marked(side: Side) -> str:
    """The text with <mark> around what both have."""
    parts, end = [], 0
    for start, stop in side.marked:
        parts += [escape(side.text[end:start]), f"<mark>{escape(side.text[start:stop])}</mark>"]
        end = stop
    return "".join([*parts, escape(side.text[end:])])


def _refused(view: DecontaminationView) -> str:
    if not view.refused_count:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in view.refused)
    note = f"{html.counted(view.refused_count, 'training record')} could not be read, and may "
    note += "hold anything; the first ones:"
    return html.section("Not read", note, f"<ul class=missing>{items}</ul>")
