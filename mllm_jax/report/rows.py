"""Rows of a batch as cards: pictures, and every token as the model gets it.

What is shown comes from the batch's own arrays, never from the records: what the step sees.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from PIL import Image

from mllm_jax.report import html
from mllm_jax.report.visible import visible, visible_html


class Origin(NamedTuple):
    """Where the example in a segment comes from."""

    stream: str
    language: str  # its code
    record: str  # its id
    epoch: int
    position: int  # in the mixture


class RowView(NamedTuple):
    """One row of a Batch, fields as there, and what its numbers mean."""

    number: int  # in the step
    tokens: Int32[np.ndarray, "T"]
    targets: Int32[np.ndarray, "T"]
    weights: Float32[np.ndarray, "T"]
    segments: Int32[np.ndarray, "T"]
    positions: Int32[np.ndarray, "T"]
    image_index: Int32[np.ndarray, "T"]
    pixels: UInt8[np.ndarray, "I height width C"]
    patches: int  # placeholders of one image
    origins: Sequence[Origin]  # of segments 1, 2, ...
    texts: Mapping[int, str]  # of all tokens and targets; bytes as `surrogateescape` writes them
    control: frozenset[int]  # tokens that are no text


LEGEND = (
    "<ul class=key>"
    "<li><u class=t>trained</u> counts in the loss</li>"
    "<li><span class=t>not trained</span> is only read</li>"
    "<li><span class='t x'>&lt;|control|&gt;</span> is not text</li>"
    "<li><span class='t image'>image 1 × 4</span> placeholders of a picture</li>"
    "<li><span class='t pad'>padding × 9</span> the unused end</li>"
    "<li><span class=t><i class=space>␣</i> <i class=space>↵</i></span> space, new line</li>"
    "<li><span class=t><i class=byte>c3</i></span> a byte of a character</li></ul>"
)


def row_card(row: RowView) -> str:
    """The card of a row."""
    used = row.image_index.max(initial=-1) // max(row.patches, 1) + 1
    filled, trained = int((row.segments > 0).sum()), int((row.weights > 0).sum())
    counts = [
        html.counted(len(row.origins), "example"),
        f"{filled:,} of {html.counted(len(row.tokens), 'token')}",
        f"{trained:,} trained",
    ]
    if len(row.pixels):
        counts.append(f"{used} of {html.counted(len(row.pixels), 'image slot')}")
    trained_here = _trained(row)
    segments = (_segment(row, trained_here, s) for s in range(1, len(row.origins) + 1))
    return (
        f"<article class='card inspected'><h3>Row {row.number}</h3>"
        f"<p class=note>{', '.join(counts)}</p>{_pictures(row, int(used))}"
        f"{''.join(segments)}{_padding(len(row.tokens) - filled)}</article>\n"
    )


def _pictures(row: RowView, used: int) -> str:
    if len(row.pixels) == 0:
        return ""
    figures = []
    for slot in range(used):
        here = np.flatnonzero(row.image_index == slot * row.patches)
        whose = f"image {slot + 1}, example {row.segments[here[0]]}"
        size = "small" if row.pixels.shape[1] <= html.SMALL else "large"
        alt = f"{whose}, as the model gets it"
        figures.append(
            f"<figure class={size} id=row{row.number}-image{slot + 1}>"
            f"<img src='{_png(row.pixels[slot])}' alt='{alt}'>"
            f"<figcaption>{whose}</figcaption></figure>"
        )
    free = len(row.pixels) - used
    rest = f"<p class=free>{html.counted(free, 'image slot')} unused</p>" if free else ""
    return f"<div class=pictures>{''.join(figures)}{rest}</div>"


def _png(pixels: UInt8[np.ndarray, "height width C"]) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _padding(length: int) -> str:
    if length == 0:
        return ""
    return f"<p class=flow><span class='t pad'>padding × {length:,}</span></p>"


# ----------------------------------------------------------------------------------------- segments


def _trained(row: RowView) -> Bool[np.ndarray, "T"]:
    """Which tokens are targets that count.

    A batch holds a target's weight one place earlier, where the token before it is:

        tokens     a b c d        weights    0 1 1 0        trained    - - c d
    """
    return np.concatenate([[False], row.weights[:-1] > 0])


def _segment(row: RowView, trained: Bool[np.ndarray, "T"], number: int) -> str:
    origin = row.origins[number - 1]
    places = np.flatnonzero(row.segments == number)
    about = [
        html.language_and_code(origin.language),
        f"epoch {origin.epoch}",
        html.counted(len(places), "token"),
        f"{int(trained[places].sum()):,} trained",
        f"position {origin.position:,} of the mixture",
    ]
    return (
        f"<section class=segment><h4><span class=soft>{number}</span> {escape(origin.stream)} "
        f"<span class=slash>/</span> {escape(origin.record)}</h4>"
        f"<p class=about>{escape(', '.join(about))}</p>"
        f"<p class=flow lang='{escape(origin.language, quote=True)}'>"
        f"{''.join(_flow(row, trained, places))}</p></section>"
    )


def _flow(
    row: RowView, trained: Bool[np.ndarray, "T"], places: Int64[np.ndarray, "n"]
) -> Iterator[str]:
    """The tokens of a segment, each on a source line; an image is one chip, a turn a new line."""
    texts = visible_html(
        "" if row.image_index[place] >= 0 else row.texts[int(row.tokens[place])] for place in places
    )
    placeholders: list[int] = []  # places of the image that is being gone through
    for place, text in zip(places.tolist(), texts, strict=True):
        if placeholders and _slot(row, place) != _slot(row, placeholders[0]):
            yield _image(row, placeholders)
            placeholders = []
        if _slot(row, place) >= 0:
            placeholders.append(place)
        else:
            yield _token(row, place, text, bool(trained[place]))
    if placeholders:
        yield _image(row, placeholders)


def _slot(row: RowView, place: int) -> int:
    """Image slot of a placeholder; -1 for text."""
    return int(row.image_index[place]) // max(row.patches, 1)


def _image(row: RowView, places: list[int]) -> str:
    name = _slot(row, places[0]) + 1
    first = row.positions[places[0]]
    title = (
        f"places {places[0]} to {places[-1]} of the row · id {row.tokens[places[0]]} · "
        f"example {row.segments[places[0]]}, positions {first} to {row.positions[places[-1]]} · "
        "weight 0"
    )
    link = f"href='#row{row.number}-image{name}' title='{title}'"
    return f"<a class='t image' {link}>image {name} × {len(places):,}</a>\n"


def _token(row: RowView, place: int, text: str, trained: bool) -> str:
    token, tag = int(row.tokens[place]), "u" if trained else "span"
    css = "'t x'" if token in row.control else "t"
    title = escape(_title(row, place), quote=True)
    end = "<br>" if row.texts[token].endswith("\n") else ""
    return f"<{tag} class={css} title='{title}'>{text}</{tag}>{end}\n"


def _title(row: RowView, place: int) -> str:
    """What is known of a token, in one line."""
    weight = row.weights[place - 1] if row.positions[place] > 0 else 0
    last = place + 1 == len(row.tokens) or row.segments[place + 1] != row.segments[place]
    target = int(row.targets[place])
    follows = f"“{visible(row.texts[target])}”, id {target}, weight {row.weights[place]:g}"
    return (
        f"place {place} of the row · id {row.tokens[place]} · example {row.segments[place]}, "
        f"position {row.positions[place]} · weight {weight:g} · "
        f"target: {'none, the example ends' if last else follows}"
    )
