"""One step of a run as a page: its rows as the model gets them, and the mixture they come from.

The page needs no script and no network.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mllm_jax.batch import Batch
from mllm_jax.report import html, mixture
from mllm_jax.report.rows import LEGEND, RowView, row_card

PARTS = {"rows": "Rows", "lengths": "Lengths", "shares": "Shares", "left-out": "Left out"}


class StepView(NamedTuple):
    """What the page shows."""

    run: str  # the run's name
    step: int
    steps: int | None  # of the run; None: not counted
    batch: Batch  # all rows of the step, as numpy arrays
    images: int  # in all rows
    tiles: int  # image slots that they take
    rows: Sequence[RowView]  # the first of them
    sizes: Mapping[str, Int64[np.ndarray, "n"]]  # stream -> tokens of all its examples
    sample: mixture.Sample
    target: mixture.Target
    report: Mapping[str, Any]  # the loader's


def inspect_page(view: StepView) -> str:
    """The page's text."""
    title = f"Step {view.step:,} of {view.run}"
    cards = "".join(map(row_card, view.rows))
    note = f"The first {len(view.rows)} of {html.counted(len(view.batch.tokens), 'row')}."
    sections = (
        html.section("Rows", f"{note} Point at a token, or tap it, to learn more.", LEGEND + cards),
        mixture.lengths(view.sizes, view.target.length),
        mixture.shares(view.sample, view.target),
        mixture.left_out(view.report),
    )
    named = zip(PARTS, sections, strict=True)
    body = "".join(f"<div id={name}>{section}</div>" for name, section in named)
    return html.document(title, _head(title, view) + body, "style.css", "inspect.css")


def _head(heading: str, view: StepView) -> str:
    batch = view.batch
    filled = int((batch.segments > 0).sum())
    trained = int((np.asarray(batch.weights) > 0).sum())
    figures = [
        ("examples", f"{int(np.asarray(batch.segments).max(axis=1).sum()):,}"),
        (f"padding of {batch.tokens.size:,} tokens", html.percent(1 - filled / batch.tokens.size)),
        ("trained of the real tokens", html.percent(trained / max(filled, 1))),
    ]
    slots = batch.pixels.shape[0] * batch.pixels.shape[1]
    if slots:
        tiles = "" if view.tiles == view.images else f", {html.counted(view.tiles, 'tile')}"
        figures.append((f"images in {html.counted(slots, 'slot')}", f"{view.images:,}{tiles}"))
    links = " ".join(f"<a href='#{name}'>{title}</a>" for name, title in PARTS.items())
    return (
        f"<header><h1>{escape(heading)}</h1><p class=soft>{escape(_about(view))}</p>"
        f"{html.figures(figures)}<nav>{links}</nav></header>\n"
    )


def _about(view: StepView) -> str:
    rows = f"{len(view.batch.tokens)} rows of {view.batch.tokens.shape[1]:,} tokens"
    if view.steps is None:
        return f"{rows}."
    if view.step >= view.steps:
        return f"{rows}. The run ends before this step: its steps are 0 to {view.steps - 1:,}."
    return f"{rows}. The run's steps are 0 to {view.steps - 1:,}."
