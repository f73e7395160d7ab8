"""The quickstart's files: valid records, right answers, no held-out picture in training."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mllm_jax.config.data import StreamConfig
from mllm_jax.digits import phrases
from mllm_jax.digits.names import name
from mllm_jax.digits.records import Counts, make_data
from mllm_jax.evaluation.questions import load_records

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
        "backbone_en": 200,
        "instruct_eu": 200,
        "instruct_en": 200,
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
        number[record["image"]] = next(n for n in range(100) if words in captions(n, "eu"))
    for language in ("en", "it", "es"):
        for record in read(folder / f"captions_{language}.json"):
            words = record["conversations"][1]["value"]
            assert words in captions(number[record["image"]], language)
    seen, first = Counter(), Counter()
    for file in ("backbone_en", "instruct_en", "instruct_eu"):
        for record in read(folder / f"{file}.json"):
            opener, language, _ = record["id"].rsplit("-", 2)
            values = [turn["value"] for turn in record["conversations"]]
            kinds = [asked_kind(question, language) for question in values[::2]]
            assert kinds[0] == opener and len(set(kinds)) == len(kinds) == COUNTS.rounds
            right = [phrases.answer(kind, number[record["image"]], language) for kind in kinds]
            assert values[1::2] == right
            seen.update(kinds)
            first[opener] += 1
    assert seen.total() == 3 * 200 * COUNTS.rounds
    assert min(seen.values()) > 250 and min(first.values()) > 110  # 300 and 150 if all were equal


def captions(number: int, language: str) -> list[str]:
    return [phrases.caption(wording, number, language) for wording in phrases.CAPTIONS[language]]


def asked_kind(question: str, language: str) -> str:
    words = question.removeprefix("<image>\n")
    return next(kind for kind, asked in phrases.QUESTIONS.items() if words in asked[language])


def test_captions():
    assert phrases.caption(phrases.CAPTIONS["eu"][0], 57, "eu") == (
        "Bost eta zazpi: berrogeita hamazazpi."
    )
    assert phrases.caption(phrases.CAPTIONS["en"][1], 7, "en") == (
        "Zero and seven make the number seven."
    )


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
