"""Rows of a batch as cards: pictures, and every token as the model gets it.

What is shown comes from the batch's own arrays, never from the records: what the step sees.
"""

import base64
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from PIL import Image

from mllm_jax.batch import TEXT
from mllm_jax.report import html
from mllm_jax.report.visible import visible, visible_html


class Origin(NamedTuple):
    """Where the example in a segment comes from."""

    stream: str
    language: str  # its code
    record: str  # its id
    epoch: int
    position: int  # in the mixture


class ImageView(NamedTuple):
    """An image of a row."""

    first: int  # its first image slot: the whole image
    tiles: int  # image slots that it takes


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
    patches: int  # of an image slot
    images: Sequence[ImageView]
    origins: Sequence[Origin]  # of segments 1, 2, ...
    texts: Mapping[int, str]  # of all tokens and targets; bytes as `surrogateescape` writes them
    control: frozenset[int]  # tokens that are no text


LEGEND = (
    "<ul class=key>"
    "<li><u class=t>trained</u> counts in the loss</li>"
    "<li><span class=t>not trained</span> is only read</li>"
    "<li><span class='t x'>&lt;|control|&gt;</span> is not text</li>"
    "<li><span class='t image'>image 1 × 4</span> placeholders of a picture</li>"
    "<li><span class='t image'>tiles of image 1: 3 × (6 + newline)</span> its tiles' lines</li>"
    "<li><span class='t pad'>padding × 9</span> the unused end</li>"
    "<li><span class=t><i class=space>␣</i> <i class=space>↵</i></span> space, new line</li>"
    "<li><span class=t><i class=byte>c3</i></span> a byte of a character</li></ul>"
)


def row_card(row: RowView) -> str:
    """The card of a row."""
    used = sum(image.tiles for image in row.images)
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
        f"<p class=note>{', '.join(counts)}</p>{_pictures(row, used)}"
        f"{''.join(segments)}{_padding(len(row.tokens) - filled)}</article>\n"
    )


def _pictures(row: RowView, used: int) -> str:
    if len(row.pixels) == 0:
        return ""
    figures = []
    for number, image in enumerate(row.images, start=1):
        here = np.flatnonzero(row.image_index == image.first * row.patches)
        whose = f"image {number}, example {row.segments[here[0]]}"
        link = f" id=row{row.number}-image{number}"
        figures.append(_figure(row, image.first, whose, link))
        for tile in range(1, image.tiles):
            name = f"image {number}, tile {tile} of {image.tiles - 1}"
            figures.append(_figure(row, image.first + tile, name))
    free = len(row.pixels) - used
    rest = f"<p class=free>{html.counted(free, 'image slot')} unused</p>" if free else ""
    return f"<div class=pictures>{''.join(figures)}{rest}</div>"


def _figure(row: RowView, slot: int, name: str, link: str = "") -> str:
    size = "small" if row.pixels.shape[1] <= html.SMALL else "large"
    return (
        f"<figure class={size}{link}>"
        f"<img src='{_png(row.pixels[slot])}' alt='{name}, as the model gets it'>"
        f"<figcaption>{name}</figcaption></figure>"
    )


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
    """The tokens of a segment, each on a source line; an image is a chip or two."""
    is_text = row.image_index[places] == TEXT
    texts = visible_html(
        row.texts[int(row.tokens[place])] if text else ""
        for place, text in zip(places, is_text, strict=True)
    )
    named = zip(_images_of(row, places), places.tolist(), texts, strict=True)
    for number, group in itertools.groupby(named, key=lambda one: one[0]):
        if number:
            yield from _image(row, number, np.array([place for _, place, _ in group]))
        else:
            yield from (_token(row, place, text, bool(trained[place])) for _, place, text in group)


def _images_of(row: RowView, places: Int64[np.ndarray, "n"]) -> list[int]:
    """The number, from 1, of the image that each place belongs to; 0 for text."""
    owners = [n for n, image in enumerate(row.images, start=1) for _ in range(image.tiles)]
    numbers: list[int] = []
    for index in row.image_index[places].tolist():
        if index == TEXT:
            numbers.append(0)
        elif index == _newline(row):
            numbers.append(numbers[-1])
        else:
            numbers.append(owners[index // row.patches])
    return numbers


def _newline(row: RowView) -> int:
    """The image index of the newline vector, see `Batch`."""
    return len(row.pixels) * row.patches


def _image(row: RowView, number: int, places: Int64[np.ndarray, "n"]) -> Iterator[str]:
    """Chips of the places of an image: the whole image, and the lines of its tiles.

    image 1 × 4     tiles of image 1: 2 × (1 + newline)
    """
    image, index = row.images[number - 1], row.image_index[places]
    whole = places[index // row.patches == image.first]
    rest = places[len(whole) :]
    lines = int((row.image_index[rest] == _newline(row)).sum())
    if image.tiles == 1:
        newline = " + newline" if lines else ""
        yield _chip(row, number, places, f"image {number} × {len(whole):,}{newline}")
        return
    yield _chip(row, number, whole, f"image {number} × {len(whole):,}")
    width = len(rest) // lines - 1
    yield _chip(row, number, rest, f"tiles of image {number}: {lines} × ({width} + newline)")


def _chip(row: RowView, number: int, places: Int64[np.ndarray, "n"], text: str) -> str:
    first, last = int(places[0]), int(places[-1])
    title = (
        f"places {first} to {last} of the row · id {row.tokens[first]} · "
        f"example {row.segments[first]}, positions {row.positions[first]} to {row.positions[last]} "
        "· weight 0"
    )
    newlines = places[row.image_index[places] == _newline(row)].tolist()
    if newlines:
        title += f" · newlines at places {', '.join(map(str, newlines))}"
    link = f"href='#row{row.number}-image{number}' title='{title}'"
    return f"<a class='t image' {link}>{text}</a>\n"


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
