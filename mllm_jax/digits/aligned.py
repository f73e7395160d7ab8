"""Pictures with questions and captions in three languages at once: the data of LRM-LLaVA's tasks.

    FOLDER/images/*.png            train-* from training scans, test-* from held-out scans
    FOLDER/backbone_en.json        questions about pictures, English  | stand in for an image tower
    FOLDER/backbone_captions.json  captions, English                  | and a language model that
    FOLDER/backbone_text_*.json    text only, three languages         | reads all three
    FOLDER/captions.jsonl          aligned captions, a picture a line
    FOLDER/questions.jsonl         aligned questions and answers, a picture a line
    FOLDER/heldout.json            questions about held-out scans

`mllm-jax corpus tasks` makes LLaVA records of the aligned ones.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mllm_jax.digits import phrases
from mllm_jax.digits.pictures import Picture, draw_pictures, split_scans
from mllm_jax.digits.records import (
    KINDS,
    Counts,
    Record,
    ask,
    describe,
    examine,
    speak,
    write_records,
)

LANGUAGES = ("en", "eu", "es")
NUMBER = 0.5  # of the questions ask which number it is


def make_aligned_data(folder: Path, counts: Counts, seed: int = 0) -> list[str]:
    """Writes every file above; the same arguments give the same files.

    Args:
        folder: an empty or new folder.
        counts: how much.
        seed: of the split of the scans, the pictures and the wordings.

    Returns:
        The texts of what the backbone reads, for a tokenizer.
    """
    train, test = split_scans(seed=seed)
    images = folder / "images"
    pictures = draw_pictures(train, counts.pictures, images, "train", vary=True, seed=seed + 1)
    heldout = draw_pictures(test, 100 * counts.heldout, images, "test", vary=False, seed=seed + 2)
    rng = np.random.default_rng(seed + 3)
    files = {
        "backbone_en": ask(pictures, "en", counts.rounds, rng),
        "backbone_captions": describe(pictures, "en", rng),
        **{
            f"backbone_text_{code}": list(itertools.islice(speak(code, rng), counts.text))
            for code in LANGUAGES
        },
    }
    for file, records in files.items():
        write_records(folder / f"{file}.json", records)
    _write_lines(folder / "captions.jsonl", align_captions(pictures, rng))
    _write_lines(folder / "questions.jsonl", align_questions(pictures, rng))
    write_records(folder / "heldout.json", examine(heldout, LANGUAGES, counts.fewer, rng))
    return [
        turn["value"]
        for records in files.values()
        for record in records
        for turn in record["conversations"]
    ]


def align_captions(pictures: Sequence[Picture], rng: np.random.Generator) -> Iterator[Record]:
    """A sentence about every picture in all languages: the same wording of each."""
    for count, picture in enumerate(pictures):
        place = int(rng.integers(len(phrases.CAPTIONS["en"])))
        answers = {
            code: phrases.caption(phrases.CAPTIONS[code][place], picture.number, code)
            for code in LANGUAGES
        }
        yield {"id": f"caption-{count:06d}", "image": picture.file, "a": answers}


def align_questions(pictures: Sequence[Picture], rng: np.random.Generator) -> Iterator[Record]:
    """A question about every picture in all languages: the same wording of each."""
    others = [kind for kind in KINDS if kind != "number"]
    for count, picture in enumerate(pictures):
        kind = "number" if rng.random() < NUMBER else others[int(rng.integers(len(others)))]
        place = int(rng.integers(len(phrases.QUESTIONS[kind]["en"])))
        yield {
            "id": f"{kind}-{count:06d}",
            "image": picture.file,
            "q": {code: phrases.QUESTIONS[kind][code][place] for code in LANGUAGES},
            "a": {code: phrases.answer(kind, picture.number, code) for code in LANGUAGES},
        }


def _write_lines(path: Path, records: Iterator[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
