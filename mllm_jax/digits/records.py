"""Pictures and sentences -> files of records: ordinary LLaVA JSON with PNG images.

    FOLDER/images/*.png          train-* from training scans, test-* from held-out scans
    FOLDER/backbone_en.json      questions about pictures, English  | stand in for an image tower
    FOLDER/backbone_text_*.json  text only, Basque and English      | and a language model
    FOLDER/captions_*.json       a picture and a sentence, four languages
    FOLDER/instruct_*.json       questions about pictures, Basque and English
    FOLDER/text_*.json           arithmetic in words, no picture
    FOLDER/heldout.json          questions about held-out scans

A record's id says what it asks: "number-eu-000123" is <kind>-<language>-<count>.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mllm_jax.digits import phrases
from mllm_jax.digits.names import name
from mllm_jax.digits.pictures import Picture, draw_pictures, split_scans

Record = dict[str, Any]
KINDS = tuple(phrases.QUESTIONS)


class Counts(NamedTuple):
    """How much data is made."""

    pictures: int = 8000  # training pictures
    rounds: int = 3  # questions in a conversation about one of them
    text: int = 4000  # records of each text-only file
    heldout: int = 3  # held-out pictures of every number
    fewer: int = (
        3  # one in so many of them also gets the kinds of question other than "which number"
    )


def make_data(folder: Path, counts: Counts | None = None, seed: int = 0) -> list[str]:
    """Writes every file above; the same arguments give the same files.

    Args:
        folder: an empty or new folder.
        counts: how much.
        seed: of the split of the scans, the pictures and the wordings.

    Returns:
        The texts of all training records, for a tokenizer.
    """
    counts = counts or Counts()
    train, test = split_scans(seed=seed)
    pictures = draw_pictures(
        train, counts.pictures, folder / "images", "train", vary=True, seed=seed + 1
    )
    heldout = draw_pictures(
        test, 100 * counts.heldout, folder / "images", "test", vary=False, seed=seed + 2
    )
    rng = np.random.default_rng(seed + 3)
    files = {
        "backbone_en": ask(pictures, "en", counts.rounds, rng),
        "backbone_text_eu": list(itertools.islice(speak("eu", rng), counts.text)),
        "backbone_text_en": list(itertools.islice(speak("en", rng), counts.text)),
        **{
            f"captions_{language}": describe(pictures, language, rng)
            for language in phrases.CAPTIONS
        },
        "instruct_eu": ask(pictures, "eu", counts.rounds, rng),
        "instruct_en": ask(pictures, "en", counts.rounds, rng),
        "text_eu": list(itertools.islice(calculate("eu", rng), counts.text)),
        "text_en": list(itertools.islice(calculate("en", rng), counts.text)),
    }
    for file, records in files.items():
        write_records(folder / f"{file}.json", records)
    write_records(folder / "heldout.json", examine(heldout, ("eu", "en"), counts.fewer, rng))
    return [
        turn["value"]
        for records in files.values()
        for record in records
        for turn in record["conversations"]
    ]


def ask(
    pictures: Sequence[Picture], language: str, rounds: int, rng: np.random.Generator
) -> list[Record]:
    """A conversation about every picture: `rounds` questions of different kinds, in any order."""
    records = []
    for count, picture in enumerate(pictures):
        kinds = [KINDS[i] for i in rng.permutation(len(KINDS))[:rounds]]
        records.append(_talk(kinds, picture, language, count, rng))
    return records


def describe(pictures: Sequence[Picture], language: str, rng: np.random.Generator) -> list[Record]:
    """A sentence about every picture."""
    sentences = phrases.CAPTIONS[language]
    return [
        _record(
            f"caption-{language}-{count:06d}",
            language,
            [("<image>", phrases.caption(_pick(sentences, rng), p.number, language))],
            p.file,
        )
        for count, p in enumerate(pictures)
    ]


def examine(
    pictures: Sequence[Picture], languages: Iterable[str], fewer: int, rng: np.random.Generator
) -> list[Record]:
    """Held-out questions: "which number" about every picture, the other kinds about one picture
    in `fewer`.
    """
    records = []
    for language, (n, kind) in itertools.product(languages, enumerate(phrases.QUESTIONS)):
        chosen = pictures if kind == "number" else pictures[n % fewer :: fewer]
        records += [
            _talk([kind], picture, language, count, rng) for count, picture in enumerate(chosen)
        ]
    return records


def calculate(language: str, rng: np.random.Generator) -> Iterator[Record]:
    """Sums and differences in words without end: a number of 0-99 and one of 0-9, the result
    again in 0-99.
    """
    for count in itertools.count():
        kind = ("plus", "minus")[count % 2]
        small = int(rng.integers(10))
        result = int(rng.integers(100 - small))
        first, truth = (result, result + small) if kind == "plus" else (result + small, result)
        terms = [name(first, language), name(small, language)]
        wordings = phrases.PLUS if kind == "plus" else phrases.MINUS
        question = phrases.opening(_pick(wordings[language], rng).format(*terms))
        yield _record(
            f"{kind}-{language}-{count:06d}", language, [(question, name(truth, language))]
        )


def speak(language: str, rng: np.random.Generator) -> Iterator[Record]:
    """Text of every kind without end: what a language model knows of numbers before it has seen
    one.

    Questions about figures, arithmetic in words, counting, sentences, and names in the other
    languages.
    """
    sums = calculate(language, rng)
    makers = (_figures, _figures, _next, _sentence, _figures, _translation)
    for count in itertools.count():
        turn = count % (len(makers) + 1)
        if turn == len(makers):
            yield next(sums) | {"id": f"sums-{language}-{count:06d}"}
            continue
        kind, question, answer = makers[turn](int(rng.integers(100)), language, rng)
        yield _record(f"{kind}-{language}-{count:06d}", language, [(question, answer)])


# ------------------------------------------------------------------------------------------ insides


def _figures(number: int, language: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """A question about a picture, asked of two figures instead."""
    kind = _pick(KINDS, rng)
    figures = phrases.FIGURES[language].format(f"{number:02d}")
    question = _pick(phrases.QUESTIONS[kind][language], rng)
    return f"figures-{kind}", f"{figures} {question}", phrases.answer(kind, number, language)


def _next(number: int, language: str, rng: np.random.Generator) -> tuple[str, str, str]:
    first = min(number, 96)
    names = [name(first + i, language) for i in range(4)]
    return "next", phrases.NEXT[language].format(*names[:3]), names[3]


def _sentence(number: int, language: str, rng: np.random.Generator) -> tuple[str, str, str]:
    word = name(number, language)
    return (
        "sentence",
        phrases.SENTENCE[language].format(word),
        phrases.caption(_pick(phrases.CAPTIONS[language], rng), number, language),
    )


def _translation(number: int, language: str, rng: np.random.Generator) -> tuple[str, str, str]:
    asked = _pick(sorted(to for of, to in phrases.TRANSLATE if of == language), rng)
    question = phrases.TRANSLATE[language, asked].format(name(number, language))
    return f"into-{asked}", question, name(number, asked)


def _talk(
    kinds: Sequence[str], picture: Picture, language: str, count: int, rng: np.random.Generator
) -> Record:
    """One picture and a question of each kind; the id begins with the first one."""
    pairs = [
        (
            _pick(phrases.QUESTIONS[kind][language], rng),
            phrases.answer(kind, picture.number, language),
        )
        for kind in kinds
    ]
    pairs[0] = (f"<image>\n{pairs[0][0]}", pairs[0][1])
    return _record(f"{kinds[0]}-{language}-{count:06d}", language, pairs, picture.file)


def _record(
    key: str, language: str, pairs: Sequence[tuple[str, str]], image: str | None = None
) -> Record:
    turns = [
        {"from": who, "value": text}
        for pair in pairs
        for who, text in zip(("human", "gpt"), pair, strict=True)
    ]
    picture = {} if image is None else {"image": image}
    return {"id": key, **picture, "language": language, "conversations": turns}


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def write_records(path: Path, records: list[Record]) -> None:
    """Writes a JSON list, a record a line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
