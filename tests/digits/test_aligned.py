"""Aligned pictures, captions and questions: the same content in three languages."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mllm_jax.digits import phrases
from mllm_jax.digits.aligned import LANGUAGES, make_aligned_data
from mllm_jax.digits.names import name
from mllm_jax.digits.records import Counts

COUNTS = Counts(pictures=300, rounds=2, text=300, heldout=1, fewer=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aligned")
    make_aligned_data(out, COUNTS)
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_question_and_its_answer_mean_the_same_in_all_languages(folder: Path):
    kinds = Counter()
    numbers = {}  # picture -> its number, as the captions say
    for record in lines(folder / "captions.jsonl"):
        words = record["a"]["en"].rstrip(".").split(" ")[-1]
        numbers[record["image"]] = next(n for n in range(100) if name(n, "en") == words)
    for record in lines(folder / "questions.jsonl"):
        kind = record["id"].rpartition("-")[0]
        kinds[kind] += 1
        assert tuple(record["q"]) == tuple(record["a"]) == LANGUAGES
        places = {
            code: phrases.QUESTIONS[kind][code].index(text) for code, text in record["q"].items()
        }
        assert len(set(places.values())) == 1
        for code, text in record["a"].items():
            assert text == phrases.answer(kind, numbers[record["image"]], code)
    assert set(kinds) == set(phrases.QUESTIONS) and 120 < kinds["number"] < 180


def test_captions_are_of_the_same_number(folder: Path):
    for record in lines(folder / "captions.jsonl"):
        english, basque = record["a"]["en"].rstrip("."), record["a"]["eu"].rstrip(".")
        ends = english.split(" ")[-1]
        number = next(n for n in range(100) if name(n, "en") == ends)
        assert name(number, "eu") in basque.lower()
        assert (folder / "images" / record["image"]).is_file()


def test_the_backbone_sees_pictures_in_english_alone(folder: Path):
    for file in sorted(folder.glob("backbone_*.json")):
        records = json.loads(file.read_text(encoding="utf-8"))
        seen = {record["language"] for record in records if "image" in record}
        assert seen <= {"en"}, file
    heldout = json.loads((folder / "heldout.json").read_text(encoding="utf-8"))
    assert {record["language"] for record in heldout} == set(LANGUAGES)
    assert all(record["image"].startswith("test-") for record in heldout)


def test_the_same_arguments_give_the_same_files(folder: Path, tmp_path: Path):
    make_aligned_data(tmp_path, COUNTS)
    for file in folder.glob("*.json*"):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
