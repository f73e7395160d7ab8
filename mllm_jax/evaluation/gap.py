"""Image vectors against text vectors, per language, as LRM-LLaVA compares them: `mllm-jax gap`.

    records with an image, in several languages
        -> connector's outputs, mean over the patches of an image      one vector an image
        -> rows of the token table, mean over the tokens of a text     one vector a record
        -> numbers per language, languages against each other, a figure

Source: Li et al., LRM-LLaVA (2024), the figure of image and multilingual text features.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from mllm_jax.common import interrupts
from mllm_jax.common.errors import require
from mllm_jax.common.folders import check_file, check_new, new_folder
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.heldout import images_beside
from mllm_jax.data.progress import bar
from mllm_jax.data.records.parse import Record
from mllm_jax.evaluation.modality_gap import Gap, Vectors, gap, project
from mllm_jax.evaluation.questions import languages_in, load_records
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.shapes import bucket
from mllm_jax.models import mllm
from mllm_jax.report import html
from mllm_jax.report.scatter import scatter

ROWS = 32  # records at a time
FEWEST = 4  # records of a language: two in each half
HEAD = (
    *("texts", "records", "centroid distance", "relative", "centroid cosine", "pair cosine"),
    *("separability", "retrieval"),
)


class LanguageVectors(NamedTuple):
    """The records of one language."""

    images: Vectors
    texts: Vectors
    pictures: list[tuple[str | bytes, ...]]  # of each record


def measure(
    model: Path,
    data: Path,
    out: Path | None = None,
    images: Path | None = None,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Measures, prints the tables, and writes what is asked for.

    Args:
        model: a model, run or Hugging Face folder.
        data: LLaVA JSON or JSONL; records name their language. Records without an image are
            counted and left out.
        out: folder to make, with gap.json, gap.md and gap.html.
        images: where image paths start; default `images` beside the file, else its folder.
        json_file: also gets the numbers.

    Returns:
        {"languages": {language: `Gap`}, "pairs": [{"a", "b", `Gap` of their texts}], "left_out"}.

    Raises:
        ConfigError: a file cannot be used; the model has no image tower; a language has fewer than
            four records with an image.
    """
    if out is not None:
        check_new(out)
    if json_file is not None:
        check_file(json_file)
    opened = Answerer(model)
    require(opened.config.patches > 0, f"{model}: the model reads text only: it has no gap")
    languages = languages_in(data)
    folder = images or images_beside(data)
    every = load_records("gap", StreamConfig(str(data), str(folder)), languages)
    records = [record for record in every if record.images]
    for language in languages:
        count = sum(record.language == language for record in records)
        require(
            count >= FEWEST,
            f"{data}: {count} records in {language} have an image; at least {FEWEST} are needed",
        )
    sets = vectors(opened, records)
    tree = numbers(sets) | {"left_out": len(every) - len(records)}
    if json_file is not None:
        write_json(json_file, tree)
    text = _tables(tree)
    if out is not None:
        with new_folder(out) as temporary:
            write_json(temporary / "gap.json", tree)
            (temporary / "gap.md").write_text(text, encoding="utf-8")
            page = _page(str(model), tree, sets)
            (temporary / "gap.html").write_text(page, encoding="utf-8")
        text += f"\nwritten to {out}\n"
    print(text, end="", flush=True)
    return tree


def numbers(sets: dict[str, LanguageVectors]) -> dict[str, Any]:
    """Image against text in every language; texts of two languages about the same pictures."""
    return {
        "languages": {name: gap(of.images, of.texts)._asdict() for name, of in sets.items()},
        "pairs": [
            {"a": a, "b": b, **between._asdict()}
            for a, b in itertools.combinations(sets, 2)
            if (between := _between(sets[a], sets[b])) is not None
        ],
    }


def _between(first: LanguageVectors, second: LanguageVectors) -> Gap | None:
    """Texts about the same pictures, paired in order; None where fewer than four are."""
    places: dict[tuple[str | bytes, ...], list[int]] = defaultdict(list)
    for place, pictures in enumerate(second.pictures):
        places[pictures].append(place)
    pairs = [
        (place, places[pictures].pop(0))
        for place, pictures in enumerate(first.pictures)
        if places[pictures]
    ]
    if len(pairs) < FEWEST:
        return None
    a, b = np.array(pairs).T
    return gap(first.texts[a], second.texts[b])


# ---------------------------------------------------------------------------------------- vectors


def vectors(
    opened: Answerer, records: Sequence[Record], rows: int = ROWS
) -> dict[str, LanguageVectors]:
    """The vectors of every language, in order of appearance; records have images."""
    texts = np.concatenate(list(_text_vectors(opened, records, rows)))
    different = list(dict.fromkeys(record.images for record in records))
    of_image = dict(zip(different, _image_vectors(opened, different, rows), strict=True))
    images = np.stack([of_image[record.images] for record in records])
    sets = {}
    for language in dict.fromkeys(record.language for record in records):
        chosen = [n for n, record in enumerate(records) if record.language == language]
        pictures = [records[n].images for n in chosen]
        sets[language] = LanguageVectors(images[chosen], texts[chosen], pictures)
    return sets


def _image_vectors(
    opened: Answerer, images: Sequence[tuple[str | bytes, ...]], rows: int
) -> Iterator[Float[np.ndarray, "d"]]:
    """The mean over all patches of all squares of each conversation's images."""
    for start in bar(range(0, len(images), rows), desc="images"):
        interrupts.check()
        some = images[start : start + rows]
        embedded = opened.embed([opened.pictures(files) for files in some])
        assert embedded.embeddings is not None
        squares = np.asarray(embedded.embeddings.astype(jnp.float32).mean(1), np.float64)
        counts = embedded.counts[1:]
        slots = embedded.slots(len(some), max(counts))
        for row, count in zip(slots, counts, strict=True):
            yield squares[row[:count]].mean(0)


def _text_vectors(opened: Answerer, records: Sequence[Record], rows: int) -> Iterator[Vectors]:
    """The mean over the tokens of all texts of each record; images and roles are left out."""
    tokens = [_tokens(opened, record) for record in records]
    for start in range(0, len(tokens), rows):
        interrupts.check()
        some = tokens[start : start + rows]
        ids = np.zeros((rows, bucket(max(map(len, some)))), np.int32)
        real = np.zeros(ids.shape, bool)
        for n, one in enumerate(some):
            ids[n, : len(one)], real[n, : len(one)] = one, True
        means = _mean_embedding(opened.model, opened.params, ids, real)
        yield np.asarray(means, np.float64)[: len(some)]


def _tokens(opened: Answerer, record: Record) -> list[int]:
    texts = (part.strip() for turn in record.turns for part in turn.parts if isinstance(part, str))
    text = "\n".join(filter(None, texts))
    return opened.tokenizer(text, add_special_tokens=False)["input_ids"]


@functools.partial(jax.jit, static_argnums=0)
def _mean_embedding(
    model: mllm.MLLM,
    params: dict[str, Array],
    ids: Int32[Array, "rows t"],
    real: Bool[Array, "rows t"],
) -> Float[Array, "rows d"]:
    x = mllm.apply(model, params, "language", ids, method="embed").astype(jnp.float32)
    return jnp.where(real[:, :, None], x, 0).sum(1) / jnp.maximum(real.sum(1), 1)[:, None]


# ----------------------------------------------------------------------------------------- tables


def _tables(tree: dict[str, Any]) -> str:
    rows = [_cells(f"{name}, images", of) for name, of in tree["languages"].items()]
    rows += [_cells(f"{of['a']}, {of['b']}", of) for of in tree["pairs"]]
    text = markdown_table(HEAD, rows)
    if tree["left_out"]:
        text += f"\n{tree['left_out']:,} records without an image were left out\n"
    return text


def _cells(name: str, of: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{of['count']:,}",
        f"{of['centroid_distance']:.4g}",
        f"{of['relative_distance']:.3f}",
        f"{of['centroid_cosine']:.3f}",
        f"{of['pair_cosine']:.3f}",
        f"{100 * of['separability']:.1f} %",
        f"{100 * of['retrieval']:.1f} %",
    )


def _page(model: str, tree: dict[str, Any], sets: dict[str, LanguageVectors]) -> str:
    """The figure, then the numbers."""
    images = np.concatenate([of.images for of in sets.values()])
    groups = {"images": np.unique(images, axis=0)}  # once, whatever the number of languages
    groups |= {html.language_and_code(name): of.texts for name, of in sets.items()}
    plane = project(groups)
    axes = [
        f"component {n}: {html.percent(share)} of the variance"
        for n, share in enumerate(plane.shares, 1)
    ]
    figure = scatter("Principal components", plane.points, (axes[0], axes[1]))
    rows = [(f"{html.language_and_code(n)}, images", of) for n, of in tree["languages"].items()]
    rows += [(f"{of['a']}, {of['b']}", of) for of in tree["pairs"]]
    table = html.table(HEAD, [html.row(name, _cells(name, of)[1:]) for name, of in rows])
    title = "Image vectors and text vectors"
    note = "A dot is the mean over one image or one text; a large dot is the mean of all."
    body = (
        f"<header><h1>{title}</h1><p class=soft>{escape(model)}</p></header>"
        f"{html.section('In the plane', note, figure)}"
        f"{html.section('Numbers', 'The first rows are texts against their images.', table)}"
    )
    return html.document(title, body, "style.css")
