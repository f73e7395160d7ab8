"""The quickstart's files: valid records, right answers, no held-out picture in training."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mllm_jax.config import StreamConfig
from mllm_jax.data.records import load_records
from mllm_jax.digits import phrases
from mllm_jax.digits.names import name
from mllm_jax.digits.records import Counts, make_data

COUNTS = Counts(pictures=200, rounds=2, text=300, heldout=2, fewer=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits")
    make_data(out, COUNTS)
    return out


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def number_of(words: str, language: str) -> int:
    return next(n for n in range(100) if name(n, language) == words)


@pytest.mark.parametrize(
    ("kind", "number", "language", "truth"),
    [
        ("number", 77, "eu", "hirurogeita hamazazpi"),
        ("number", 7, "en", "seven"),
        ("parity", 40, "eu", "bikoitia"),
        ("parity", 41, "eu", "bakoitia"),
        ("parity", 0, "en", "even"),
        ("parity", 99, "en", "odd"),
        ("sum", 99, "eu", "hemezortzi"),
        ("sum", 7, "en", "seven"),
        ("larger", 57, "eu", "zazpi"),
        ("larger", 70, "en", "seven"),
        ("larger", 55, "eu", "berdinak dira"),
        ("larger", 0, "en", "they are equal"),
    ],
)
def test_answers(kind: str, number: int, language: str, truth: str):
    assert phrases.answer(kind, number, language) == truth


def test_every_file_is_an_ordinary_stream(folder: Path):
    sizes = {}
    for path in sorted(folder.glob("*.json")):
        stream = StreamConfig(str(path), str(folder / "images"))
        sizes[path.stem] = len(load_records(path.stem, stream, ("eu", "en", "it", "es")))
    captions = {f"captions_{language}": 200 for language in ("eu", "en", "it", "es")}
    asked = {
        "backbone_en": 400,
        "instruct_eu": 400,
        "instruct_en": 400,
        "heldout": 2 * (200 + 3 * 50),
    }
    assert sizes == captions | asked | dict.fromkeys(
        ("backbone_text_eu", "backbone_text_en", "text_eu", "text_en"), 300
    )


def test_no_held_out_picture_is_trained_on(folder: Path):
    for path in folder.glob("*.json"):
        wanted = "test-" if path.stem == "heldout" else "train-"
        assert all(record.get("image", wanted).startswith(wanted) for record in read(path)), (
            path.name
        )
    languages = {
        path.stem: {record["language"] for record in read(path)} for path in folder.glob("*.json")
    }
    assert languages.pop("heldout") == {"eu", "en"}
    assert all(found == {stem[-2:]} for stem, found in languages.items())


def test_a_picture_gets_consistent_answers(folder: Path):
    """The caption of a picture and the answers to its questions speak of one number, in every
    language.
    """
    number: dict[str, int] = {}
    for record in read(folder / "captions_eu.json"):
        words = record["conversations"][1]["value"]
        number[record["image"]] = next(
            n for n in range(99, -1, -1) if re.search(rf"\b{name(n, 'eu')} zenbakia", words)
        )
    for language in ("en", "it", "es"):
        for record in read(folder / f"captions_{language}.json"):
            assert name(number[record["image"]], language) in record["conversations"][1]["value"]
    seen = Counter()
    for file in ("backbone_en", "instruct_en", "instruct_eu"):
        for record in read(folder / f"{file}.json"):
            kind, language, _ = record["id"].rsplit("-", 2)
            question, answer = (turn["value"] for turn in record["conversations"])
            assert question.removeprefix("<image>\n") in phrases.QUESTIONS[kind][language]
            assert answer == phrases.answer(kind, number[record["image"]], language)
            seen[kind] += 1
    assert seen == {"number": 480, "parity": 240, "sum": 240, "larger": 240}


@pytest.mark.parametrize(
    ("language", "plus", "minus"), [("eu", "gehi", "ken"), ("en", "plus", "minus")]
)
def test_arithmetic_is_right(folder: Path, language: str, plus: str, minus: str):
    for record in read(folder / f"text_{language}.json"):
        question, answer = (turn["value"] for turn in record["conversations"])
        found = re.search(
            rf"(?:Zenbat da |Kalkulatu: |How much is |Calculate: )?(.+) ({plus}|{minus}) (.+)[.?]$",
            question,
        )
        assert found, question
        first, second = (number_of(found[i].lower(), language) for i in (1, 3))
        assert number_of(answer, language) == (
            first + second if found[2] == plus else first - second
        ), question


def test_text_speaks_of_numbers_in_other_languages(folder: Path):
    kinds = Counter(
        record["id"].rsplit("-", 2)[0] for record in read(folder / "backbone_text_eu.json")
    )
    assert {
        "into-en",
        "into-it",
        "into-es",
        "next",
        "sentence",
        "sums",
        "figures-number",
        "figures-sum",
    } <= set(kinds)
    for record in read(folder / "backbone_text_en.json"):
        if record["id"].startswith("into-eu-"):
            question, answer = (turn["value"] for turn in record["conversations"])
            assert name(number_of(question.split("«")[1].split("»")[0], "en"), "eu") == answer


def test_ids_are_unique_and_files_repeat(folder: Path, tmp_path: Path):
    for path in folder.glob("*.json"):
        ids = [record["id"] for record in read(path)]
        assert len(set(ids)) == len(ids), path.name
    make_data(tmp_path, COUNTS)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name
