"""Puts pairs of training and evaluation records side by side, for the page."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.corpus import overlap, pictures
from mllm_jax.corpus.contents import Contents, DataSet
from mllm_jax.corpus.decontaminate import Contamination, Pair
from mllm_jax.data.images import decode
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.report.decontamination import DecontaminationView, PairView, SetRow, Side

SHOWN = 100  # pairs of each kind on the page
LARGEST = 320  # pixels of a side of a picture on the page
LONGEST = 600  # characters of a text on the page


def set_rows(result: Contamination) -> list[SetRow]:
    """Matches of every evaluation set."""
    rows = []
    for task in result.tasks:
        pairs = [pair for pair in result.pairs if pair.task.file == task.file]
        images = sum(pair.kind == "image" for pair in pairs)
        left_out = len({pair.data.row for pair in pairs})
        numbers = (task.records, task.images, task.texts, images, len(pairs) - images, left_out)
        rows.append(SetRow(task.file, *numbers))
    return rows


def view_of(
    data: DataSet,
    tasks: Sequence[DataSet],
    result: Contamination,
    words: int,
    clean: Path | None,
) -> DecontaminationView:
    """What the page shows: counts, and the first pairs of each kind with their records."""
    sets = {str(task.path): task for task in tasks}
    kinds = {
        kind: [p for p in result.pairs if p.kind == kind][:SHOWN] for kind in ("image", "text")
    }
    how = "leave_out.json lists their rows and ids."
    if clean is not None:
        how = f"{clean} is the data without them; train on it."
    elif isinstance(data.source, JsonSource):
        how += " --clean FILE writes the data without them."
    counts = result.data
    return DecontaminationView(
        data=str(data.path),
        records=counts.records,
        images=counts.images,
        texts=counts.texts,
        rows=len(result.rows),
        refused=[f"{fault.where}: {fault.reason}" for fault in counts.refused[:20]],
        refused_count=len(counts.refused),
        sets=set_rows(result),
        pictures=[_image_view(data, sets[pair.task.file], pair) for pair in kinds["image"][:SHOWN]],
        texts_shown=[
            _text_view(data, sets[pair.task.file], pair, words) for pair in kinds["text"][:SHOWN]
        ],
        how=how,
        compared="Same picture: any size and encoding, up to "
        f"{100 * pictures.CROP:g} % cropped off each edge. Same text: {words} words in a row, "
        "whatever case and punctuation.",
    )


def _image_view(data: DataSet, task: DataSet, pair: Pair) -> PairView:
    return PairView(
        _image_side(data, pair.data.row, pair.data_image),
        _image_side(task, pair.task.row, pair.task_image),
        "",
    )


def _image_side(data: DataSet, row: int, place: int) -> Side:
    record = data.read(row)
    image = Image.fromarray(decode.decode(record.images[place]))
    image.thumbnail((LARGEST, LARGEST))
    text = max(record.texts, key=lambda text: len(overlap.words_of(text)), default="")
    shorter = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return Side(data.path.name, record.id, record.language, np.asarray(image), shorter)


def _text_view(data: DataSet, task: DataSet, pair: Pair, words: int) -> PairView:
    """The two texts that share most, what they share marked."""
    records = data.read(pair.data.row), task.read(pair.task.row)
    best: tuple[int, list[Side]] = (-1, [])
    for first in records[0].texts:
        for second in records[1].texts:
            placed = [overlap.placed_words(text) for text in (first, second)]
            a, b = ([word for word, _, _ in of] for of in placed)
            both = overlap.shared_words(a, b, words)
            if len(both[0]) > best[0]:
                sides = [
                    _text_side(one, record, text, of, marked)
                    for one, record, text, of, marked in zip(
                        (data, task), records, (first, second), placed, both, strict=True
                    )
                ]
                best = len(both[0]), sides
    if not best[1]:
        raise ConfigError(f"{data.path}: changed while it was read")
    note = f"{pair.runs:,} runs of {words} words in common" if best[0] >= words else "whole text"
    return PairView(best[1][0], best[1][1], note)


def _text_side(
    data: DataSet,
    record: Contents,
    text: str,
    placed: Sequence[tuple[str, int, int]],
    marked: set[int],
) -> Side:
    """A text around what is marked of it; words that follow one another are one mark."""
    text = unicodedata.normalize("NFC", text)
    spans: list[tuple[int, int]] = []
    for number in sorted(marked):
        _, start, end = placed[number]
        if number - 1 in marked:
            start = spans.pop()[0]
        spans.append((start, end))
    first = max(0, spans[0][0] - LONGEST // 4) if spans else 0
    last = min(len(text), first + LONGEST)
    inside = [(start - first, min(end, last) - first) for start, end in spans if start < last]
    return Side(data.path.name, record.id, record.language, None, text[first:last], inside)
