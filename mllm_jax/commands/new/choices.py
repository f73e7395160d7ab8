"""Chooses the values of a stage from its data, its model and the machine, each with its reason."""

import math
from typing import Any, NamedTuple

import numpy as np

from mllm_jax.commands.new.measure import Measured

LARGE = 10**9  # parameters of a language model from which on the published values are taken
TINY = 10**8  # and below which a small model's rates are
PUBLISHED_LENGTH = 2048  # LLaVA-1.5, pretrain.sh and finetune.sh (model_max_length)
LONGEST = 4096  # tokens of a row that are chosen without being asked: memory grows with them
SEEN = 30_000  # examples of a stage: a small set is gone through several times
MOST_EPOCHS = 10
STEPS_PER_EPOCH = 50  # at least, before a batch gets as large as the published one
# LLaVA-1.5: examples in a batch and learning rate of pretrain.sh and finetune.sh
PUBLISHED = {"align": (256, 1e-3), "instruct": (128, 2e-5)}


class Choice(NamedTuple):
    """A value and, in one line, why it is that."""

    value: Any
    why: str


class Shape(NamedTuple):
    """What a stage's rows look like."""

    length: Choice
    image_slots: Choice
    rows: Choice
    epochs: Choice
    steps: int  # about so many
    examples_per_row: float


def shape(stage: str, measured: Measured, longest_row: int, patches: int, large: bool) -> Shape:
    """Rows of a stage.

    Args:
        stage: align or instruct.
        measured: its records.
        longest_row: tokens that the model can take (max_length).
        patches: tokens of an image.
        large: whether the language model is as large as the published ones.
    """
    length = _length(measured, longest_row, large)
    fits = measured.lengths[measured.lengths <= length.value]
    fits = fits if len(fits) else np.array([length.value])
    slots = _slots(measured, length.value, patches)
    per_row = max(1.0, length.value / float(fits.mean()))
    images = float(measured.images.mean())
    if images > 0:
        per_row = max(1.0, min(per_row, slots.value / images))
    published, _ = PUBLISHED[stage]
    batch = min(published, max(8, measured.records // STEPS_PER_EPOCH))
    count = max(1, round(batch / per_row))
    source = "LLaVA-1.5's batch" if batch == published else f"{STEPS_PER_EPOCH} steps an epoch"
    rows = Choice(count, f"ours: {source}: {batch} examples, {per_row:.1f} in a row")
    epochs = _epochs(stage, measured.records, large)
    steps = math.ceil(measured.records * epochs.value / (count * per_row))
    return Shape(length, slots, rows, epochs, steps, per_row)


def _length(measured: Measured, longest_row: int, large: bool) -> Choice:
    longest, median = int(measured.lengths.max()), int(np.median(measured.lengths))
    seen = f"the longest record measured has {longest:,} tokens, the median {median:,}"
    if large and longest <= PUBLISHED_LENGTH <= longest_row:
        return Choice(PUBLISHED_LENGTH, f"ours: LLaVA-1.5 (model_max_length); {seen}")
    full = min(-(-max(longest, 4 * median) // 64) * 64, LONGEST, longest_row)
    over = int((measured.lengths > full).sum())
    left = f"; {over:,} of {len(measured.lengths):,} are longer and left out" if over else ""
    return Choice(full, f"measured: {seen}{left}")


def _slots(measured: Measured, length: int, patches: int) -> Choice:
    most = int(measured.images.max())
    if most == 0 or patches == 0:
        return Choice(0, "measured: no pictures")
    some = measured.images > 0
    short = float(np.percentile(measured.lengths[some] / measured.images[some], 10))
    fit = max(1, int(length // max(short, patches)))
    seen = f"a picture with its text takes {short:.0f} tokens or more"
    return Choice(max(most, fit), f"measured: {seen}, a record has up to {most} pictures")


def _epochs(stage: str, records: int, large: bool) -> Choice:
    most = MOST_EPOCHS if stage == "align" or not large else 3
    passes = min(most, max(1, round(SEEN / records)))
    if passes == 1:
        return Choice(1, "ours: LLaVA-1.5")
    return Choice(passes, f"ours: {records:,} records are few; {records * passes:,} examples")


def rate(stage: str, parameters: int) -> Choice:
    """Peak learning rate, by the parameters of the language model."""
    if parameters >= LARGE or (stage == "align" and parameters >= TINY):
        script = "pretrain.sh" if stage == "align" else "finetune.sh"
        return Choice(PUBLISHED[stage][1], f"ours: LLaVA-1.5, {script}")
    size = f"{parameters / 1e6:,.1f} million parameters in the language model"
    values = {"align": 2e-3, "instruct": 1e-3 if parameters < TINY else 1e-4}
    return Choice(values[stage], f"ours: {size}, a small one learns at higher rates")


def weights(
    records: dict[str, int], languages: dict[str, str], project_language: str
) -> dict[str, Choice]:
    """Weights of the streams.

    Args:
        records: stream -> number of its records.
        languages: stream -> its language.
        project_language: the project's language.
    """
    others = {name for name, language in languages.items() if language != project_language}
    if not others or len(others) == len(records):
        why = "measured: by its records, so that each comes equally often"
        return {name: Choice(float(count), why) for name, count in records.items()}
    result = {}
    for name, count in records.items():
        side = others if name in others else records.keys() - others
        part, share = sum(records[other] for other in side), 0.2 if name in others else 0.8
        group = "other languages" if name in others else project_language
        why = f"ours: {share:.0%} {group}, as the published Basque recipe; {count:,} records"
        result[name] = Choice(round(share * count / part, 6), why)
    return result


def answer_tokens(measured: Measured) -> Choice:
    """Where a generated answer is cut."""
    longest = int(measured.answers.max())
    return Choice(
        min(1024, -(-longest // 16) * 16), f"measured: the longest answer has {longest} tokens"
    )
