"""Sections about the whole mixture: lengths, target and realised shares, what was left out."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from mllm_jax.report import html
from mllm_jax.report.histogram import length_histogram

# counts of what was left out, by code or language: key of a stream's report -> how it is called
KINDS = {"faults": "faulty", "dropped": "do not fit", "cut": "cut"}


class Sample(NamedTuple):
    """The examples in some consecutive steps."""

    steps: range
    rows: int  # in these steps
    streams: Int64[np.ndarray, "n"]  # number of each example's stream
    languages: Int64[np.ndarray, "n"]
    tokens: Int64[np.ndarray, "n"]  # image placeholders included
    trained: Int64[np.ndarray, "n"]
    tiles: Int64[np.ndarray, "n"]  # image slots


class Target(NamedTuple):
    """What the config asks for."""

    weights: Mapping[str, float]  # stream -> weight
    languages: Sequence[str]
    length: int
    image_slots: int


def lengths(sizes: Mapping[str, Int64[np.ndarray, "n"]], length: int) -> str:
    """A histogram per stream over the tokens of all its examples."""
    figures = []
    for n, (name, of) in enumerate(sizes.items()):
        middle, most = int(np.median(of)), int(of.max())
        about = f"{html.counted(len(of), 'example')}; half have at most {middle:,} tokens, "
        about += f"the longest {most:,}"
        figures.append(
            f"<figure class=card><h3>{escape(name)}</h3><p class=note>{about}</p>"
            f"{length_histogram(of, length, n)}</figure>"
        )
    note = f"All examples that fit a row of {length:,} tokens, image placeholders included."
    return html.section("Lengths", note, f"<div class=charts>{''.join(figures)}</div>")


def shares(sample: Sample, target: Target) -> str:
    """Tables per stream and language, and how full the rows are."""
    first, last = sample.steps[0], sample.steps[-1]
    note = (
        f"Steps {first:,} to {last:,}: {html.counted(sample.rows, 'row')} with "
        f"{html.counted(len(sample.tokens), 'example')}. The target, marked on every bar, is a "
        "share of records. A language's follows from its share in the streams' records here."
    )
    head = ("target", "records", "tokens", "trained")
    targets = _targets(target)
    codes = range(len(target.languages))
    by_language = (sample.languages == code for code in codes)
    by_stream = (sample.streams == n for n in range(len(targets)))
    names = list(map(html.language_and_code, target.languages))
    body = [
        html.table(
            ("stream", *head),
            _share_rows(sample, list(target.weights), by_stream, targets),
            css="shares",
        ),
        html.table(
            ("language", *head),
            _share_rows(sample, names, by_language, _language_targets(sample, targets, len(codes))),
            css="shares",
        ),
        html.facts(_fill(sample, target)),
    ]
    return html.section("Shares", note, "".join(body))


def left_out(report: Mapping[str, Any]) -> str:
    """What the streams hold and what no step will see; `report` is the loader's."""
    streams = report["streams"]
    kinds = [kind for kind in KINDS if any(kind in of for of in streams.values())]
    rows = []
    for name, of in streams.items():
        counts = (_counts(of.get(kind, {})) for kind in kinds)
        rows.append(html.row(name, (f"{of['records']:,}", f"{of['used']:,}", *counts)))
    note = (
        f"{report['used']:,} of {html.counted(report['records'], 'record')} are used. "
        "Cut ones are used without their end."
    )
    head = ("stream", "records", "used", *(KINDS[kind] for kind in kinds))
    return html.section("Left out", note, html.table(head, rows, css="left-out"))


def _counts(by_name: Mapping[str, int]) -> str:
    total = sum(by_name.values())
    names = ", ".join(f"{count:,} {name}" for name, count in by_name.items())
    return f"{total:,}" + (f" <small>{escape(names)}</small>" if total else "")


def _targets(target: Target) -> list[float]:
    total = sum(target.weights.values())
    return [weight / total for weight in target.weights.values()]


def _language_targets(sample: Sample, targets: Sequence[float], count: int) -> list[float]:
    """Languages belong to records: the weights of streams, split as the sampled records are."""
    split = np.zeros((len(targets), count))
    np.add.at(split, (sample.streams, sample.languages), 1)
    seen = split.sum(axis=1, keepdims=True)
    return (np.array(targets) @ (split / np.maximum(seen, 1))).tolist()


def _share_rows(
    sample: Sample,
    names: Sequence[str],
    masks: Iterator[Bool[np.ndarray, "n"]],
    targets: Sequence[float],
) -> Iterator[str]:
    every = (np.ones(len(sample.tokens), np.int64), sample.tokens, sample.trained)
    for name, mask, target in zip(names, masks, targets, strict=True):
        cells = (html.bar(counts[mask].sum() / max(counts.sum(), 1), target) for counts in every)
        yield html.row(name, (html.percent(target), *cells))


def _fill(sample: Sample, target: Target) -> Iterator[tuple[str, str]]:
    places = sample.rows * target.length
    yield "padding", f"{html.percent(1 - sample.tokens.sum() / places)} of {places:,} tokens"
    slots = sample.rows * target.image_slots
    if slots:
        share = html.percent(sample.tiles.sum() / slots)
        yield "image slots in use", f"{share} of {slots:,}"
    yield "trained", f"{html.percent(sample.trained.sum() / places)} of {places:,} tokens"
    yield "examples in a row", f"{len(sample.tokens) / sample.rows:.1f} in the mean"
