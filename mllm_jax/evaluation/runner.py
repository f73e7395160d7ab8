"""Answers to held-out questions and the loss on the true ones, per language.

    LLaVA JSON -> items, one per answer -> batches of like length -> answers.jsonl, scores.json, .md
                                            |  greedy answer to the prompt
                                            |  loss of the truth, teacher-forced

The turns before a question are the true ones, not the model's own answers. A chat template that
does not end answers, as LLaVA-1.5's on the Hub, has no loss of an answer: its answers are scored
alone. The folder holds everything that is needed to repeat a score: every raw answer, the settings,
the versions, checksums of data and template.
"""

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mllm_jax.batch import Batch
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.folders import new_folder
from mllm_jax.common.json_file import write_json
from mllm_jax.common.versions import versions
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.chat.encoder import Encoded
from mllm_jax.data.heldout import images_beside
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.data.records.parse import IMAGE, Record, Turn
from mllm_jax.evaluation.metrics import summary as scoring
from mllm_jax.evaluation.metrics.text import exact_match
from mllm_jax.evaluation.questions import languages_in, load_records
from mllm_jax.generation.engine import Answerer
from mllm_jax.models.mllm import MLLM
from mllm_jax.training.setup import apply_of
from mllm_jax.training.step import make_eval_step

LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "pillow", "numpy")
LOSS_CHUNK = 128  # positions whose logits exist at the same time
READERS = 4  # threads that read images of the next batch


class Item(NamedTuple):
    """One answer to be given: the truth before it, the question, and the truth itself."""

    record: Record
    turn: int  # which answer of the record, from 0
    question: str  # last user's turn, images left out
    truth: str
    images: tuple[str | bytes, ...]  # seen so far
    slots: int  # image slots that these take
    prompt: Encoded
    # prompt and truth, weights of this truth alone; None where the template ends no answer
    whole: Encoded | None

    @property
    def size(self) -> int:
        """Tokens of the longer of both."""
        return len((self.whole or self.prompt).tokens)


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    images: str | Path | None = None,
    max_new_tokens: int = 32,
    rows: int = 32,
) -> dict[str, Any]:
    """Answers every question of a file greedily, and scores the answers.

        evaluate("runs/instruct", "held-out.json")["languages"]["eu"]["exact_match"]

    Args:
        model: a model folder, run folder (its last checkpoint) or Hugging Face folder.
        data: LLaVA JSON or JSONL; every record names its language.
        out: folder to make; default `evaluation` inside a run folder.
        images: where image paths start; default `images` beside the file, else the file's folder.
        max_new_tokens: where an answer is cut.
        rows: answered at the same time.

    Returns:
        What is written to scores.json: "languages" (count, exact_match, loss, perplexity,
        answer_perplexity, answers_left_out, answer_tokens, unfinished of each; None for what the
        chat template does not allow to be measured) and "settings".

    Raises:
        ConfigError: no such model or file, records that cannot be used (named), prompts that are
            too long, an OUT that exists and is not empty, or no OUT for a model that is not a
            run folder.
    """
    require(rows > 0, f"rows={rows} must be positive")
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    out = Path(out) if out is not None else _inside_run(model)
    with new_folder(out) as temporary:
        opened = Answerer(model)
        languages, folder, records = read_questions(data, images)
        items = make_items(opened, records, max_new_tokens)
        answers = list(answer_all(opened, items, max_new_tokens, rows))
        result = {
            "languages": scoring.score(answers, languages),
            "settings": settings(opened, Path(data), folder, max_new_tokens, rows),
        }
        lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        (temporary / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
        write_json(temporary / "scores.json", result)
        table = scoring.table(result["languages"])
        (temporary / "scores.md").write_text(table, encoding="utf-8")
    print(f"{table}written to {out}", flush=True)
    return result


class Questions(NamedTuple):
    """A file of held-out conversations."""

    languages: tuple[str, ...]  # in order of appearance
    images: Path  # where image paths start
    records: Sequence[Record]


def read_questions(data: str | Path, images: str | Path | None = None) -> Questions:
    """Reads and checks held-out data; see `evaluate` for the arguments.

    Raises:
        ConfigError: no such file or folder, or records that cannot be used (named).
    """
    languages = languages_in(data)
    folder = Path(images) if images is not None else images_beside(Path(data))
    require(folder.is_dir(), f"images={str(folder)!r}: no such folder")
    records = load_records("evaluation", StreamConfig(str(data), str(folder)), languages)
    return Questions(languages, folder, records)


# -------------------------------------------------------------------------------------------- items


def make_items(opened: Answerer, records: Sequence[Record], max_new_tokens: int) -> list[Item]:
    """One item per assistant's turn, in file order. Raises ConfigError naming the record."""
    places = [
        (record, end)
        for record in records
        for end, turn in enumerate(record.turns)
        if turn.role == "assistant"
    ]
    names = [f"record {quoted(record.id, 60)}" for record, _ in places]
    shown = [_images(record, end) for record, end in places]
    wholes = _wholes(opened, [record.turns[: end + 1] for record, end in places], names, shown)
    items: list[Item] = []
    trained = 0  # tokens of the record's earlier answers
    for (record, end), whole, name, images in zip(places, wholes, names, shown, strict=True):
        turn = items[-1].turn + 1 if items and items[-1].record is record else 0
        prompt = opened.prompt(record.turns[:end], max_new_tokens, f"{name}: ", images)
        if whole is not None:
            before, size = trained if turn else 0, len(prompt.tokens)
            opened.check_length(size, len(whole.tokens) - size, f"{name}: ")
            trained = int(np.count_nonzero(whole.weights))
            weights = whole.weights.copy()
            weights[np.flatnonzero(weights)[:before]] = 0
            whole = whole._replace(weights=weights)
        question, truth = _text(record.turns[end - 1]), _text(record.turns[end])
        slots = sum(layout.tiles for layout in opened.layouts(images))
        items.append(Item(record, turn, question, truth, images, slots, prompt, whole))
    return items


def _images(record: Record, end: int) -> tuple[str | bytes, ...]:
    """The images of a record that its first `end` turns have."""
    seen = sum(part is IMAGE for earlier in record.turns[:end] for part in earlier.parts)
    return record.images[:seen]


def _wholes(
    opened: Answerer,
    conversations: Sequence[Sequence[Turn]],
    names: Sequence[str],
    images: Sequence[Sequence[str | bytes]],
) -> Sequence[Encoded | None]:
    """Conversations with their last answers; None of each where the template ends no answer."""
    try:
        opened.chat.check_answers()
    except ConfigError as error:
        print(f"no loss is measured, only answers are: {error}", flush=True)
        return [None] * len(conversations)
    placeholders = [opened.placeholders(each) for each in images]
    return opened.chat.encode_batch(conversations, names, placeholders)


def _text(turn: Turn) -> str:
    return "".join(part for part in turn.parts if isinstance(part, str)).strip()


# ------------------------------------------------------------------------------------------ answers


def answer_all(
    opened: Answerer, items: Sequence[Item], max_new_tokens: int, rows: int
) -> Iterator[dict[str, Any]]:
    """A line of answers.jsonl for every item, in the items' order."""
    lines: dict[int, dict[str, Any]] = {}
    batches = _batches(items, rows)
    with (
        ThreadPoolExecutor(READERS) as pool,
        tqdm(
            total=len(items), desc="answering", unit="answer", file=sys.stderr, disable=None
        ) as bar,
    ):
        pictures = _read_ahead(opened, [[items[i] for i in batch.items] for batch in batches], pool)
        for batch, seen in zip(batches, pictures, strict=True):
            interrupts.check()
            chosen = [items[i] for i in batch.items]
            output_ids = opened.answer(
                [i.prompt for i in chosen],
                seen,
                max_new_tokens,
                numbers=batch.items,
                rows=batch.rows,
                slots=batch.slots,
            )
            losses = _losses(opened, chosen, seen, batch.rows, batch.slots)
            for n, (number, item) in enumerate(zip(batch.items, chosen, strict=True)):
                lines[number] = _line(opened, item, output_ids[n], *losses[n])
            bar.update(len(chosen))
    yield from (lines[number] for number in range(len(items)))


def _line(
    opened: Answerer, item: Item, output_ids: list[int], loss: float | None, tokens: int | None
) -> dict[str, Any]:
    answer = opened.text(output_ids).strip()
    return {
        "id": item.record.id,
        "turn": item.turn,
        "language": item.record.language,
        "images": list(item.images),
        "question": item.question,
        "answer": answer,
        "truth": item.truth,
        "correct": exact_match(answer, item.truth),
        "loss": None if loss is None or tokens is None else loss / tokens,
        "tokens": tokens,
        "finished": output_ids[-1] in opened.ends,
        "answer_ids": output_ids,
    }


class _Rows(NamedTuple):
    items: list[int]
    rows: int  # of the batch; more than items in the last one of its kind
    slots: int


def _batches(items: Sequence[Item], rows: int) -> list[_Rows]:
    """Items of like length together, text-only ones apart: those skip the vision tower."""

    def slots(number: int) -> int:
        tiles = items[number].slots
        return 1 << (tiles - 1).bit_length() if tiles else 0

    order = sorted(range(len(items)), key=lambda number: (slots(number), items[number].size))
    batches = []
    for count, group in itertools.groupby(order, key=slots):
        numbers = list(group)
        size = min(rows, len(numbers))
        batches += [_Rows(numbers[i : i + size], size, count) for i in range(0, len(numbers), size)]
    return batches


def _read_ahead(
    opened: Answerer, batches: Sequence[Sequence[Item]], pool: ThreadPoolExecutor
) -> Iterator[list[list[Tiles]]]:
    """The pictures of each batch; those of the next are read while this one is answered."""

    def start(batch: Sequence[Item]) -> list[Future[list[Tiles]]]:
        return [pool.submit(opened.pictures, item.images) for item in batch]

    waiting = start(batches[0])
    for following in [*batches[1:], []]:
        ready, waiting = waiting, start(following)
        yield [future.result() for future in ready]


def _losses(
    opened: Answerer,
    items: Sequence[Item],
    pictures: Sequence[Sequence[Tiles]],
    rows: int,
    slots: int,
) -> list[tuple[float, int]] | list[tuple[None, None]]:
    """Sum of losses (nats) over the truth's tokens, and how many these are, for each item."""
    wholes = [item.whole for item in items if item.whole is not None]
    if not wholes:
        return [(None, None)] * len(items)
    batch = opened.batch(wholes, pictures, rows, slots)
    numbers = _eval_step(opened.model, opened.params, batch)
    sums, tokens = np.asarray(numbers["row_loss_sum"]), np.asarray(numbers["row_tokens"], np.int64)
    return list(zip(sums.tolist(), tokens.tolist(), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _eval_step(model: MLLM, params: Any, batch: Batch) -> dict[str, jax.Array]:
    return make_eval_step(apply_of(model), LOSS_CHUNK, 1, 1)(params, batch)


# --------------------------------------------------------------------------------------- the folder


def settings(
    opened: Answerer, data: Path, images: Path, max_new_tokens: int, rows: int
) -> dict[str, Any]:
    """All that a score depends on besides the weights."""
    return {
        "model": str(opened.path),
        "template_sha256": hashlib.sha256(opened.template.encode()).hexdigest(),
        "data": str(data),
        "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        "images": str(images),
        "decoding": {
            "temperature": 0,
            "max_new_tokens": max_new_tokens,
            "end_ids": list(opened.ends),
        },
        "exact_match": "case, final punctuation and white space ignored, Unicode NFC",
        "compute": opened.compute.compute,
        "rows": rows,
        "device": jax.devices()[0].device_kind,
        "versions": versions(*LIBRARIES),
    }


def _inside_run(model: str | Path) -> Path:
    source = open_model(model)
    is_run = source.files != source.where
    require(is_run, f"{model}: not a run folder; give --out DIR for the scores")
    return Path(model) / "evaluation"
