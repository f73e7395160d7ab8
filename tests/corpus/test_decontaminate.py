"""`mllm-jax corpus decontaminate`: planted copies are found, clean data are not."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mllm_jax.__main__ import main
from mllm_jax.corpus import scan
from tests.support import browser, made_pictures

VOCABULARY = [f"{a}{b}{c}a" for a in "bdfgjklmnprstz" for b in "aeiou" for c in "kldnrst"]
POST_PROMPT = "Answer the question using a single word or phrase in Basque, and nothing else."


def sentence(generator: np.random.Generator, count: int = 18) -> str:
    return " ".join(generator.choice(VOCABULARY, count)).capitalize() + "."


def shuffled_case(text: str) -> str:
    chance = random.Random(0)
    return "".join(chance.choice((c.upper(), c.lower())) for c in text)


def picture(generator: np.random.Generator, number: int, width: int) -> Image.Image:
    """Mostly photographs, some drawings."""
    if number % 5:
        return made_pictures.photograph(generator, width, 3 * width // 4)
    return made_pictures.drawing(generator)


def training(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Clean LLaVA records with their pictures, small ones: 1,000 must be made in seconds.

    Where there are enough to tell it from a question, they end in a prompt.
    """
    generator, records = np.random.default_rng(seed), []
    prompt = POST_PROMPT if count > 10 else ""
    (folder / "train").mkdir()
    for number in range(count):
        name = f"train/{number}.png"
        picture(generator, number, 48).save(folder / name)
        turns = [
            {"from": "human", "value": f"<image>\n{sentence(generator)}\n{prompt}"},
            {"from": "gpt", "value": sentence(generator, 25)},
        ]
        records.append({"id": f"r{number}", "image": name, "language": "eu"})
        records[-1]["conversations"] = turns
    return records


def evaluation(folder: Path, count: int) -> tuple[Path, list[Image.Image], list[str]]:
    """A benchmark as Parquet, pictures inside; its pictures and questions."""
    generator, images, questions, rows = np.random.default_rng(99), [], [], []
    for number in range(count):
        images.append(picture(generator, number + 1, 160))
        questions.append(sentence(generator))
        file = io.BytesIO()
        images[-1].save(file, "PNG")
        rows.append(
            {
                "question_id": number,
                "picture_1": {"bytes": file.getvalue(), "path": None},
                "question": f"{questions[-1]} {POST_PROMPT}",
                "choices": ["bai", "ez"],
                "language": "en",
            }
        )
    path = folder / "benchmark.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path, images, questions


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[" + ",\n ".join(lines) + "]"
    path.write_text(text, encoding="utf-8")
    return path


def plant(folder: Path, records: list[dict[str, Any]], images: list[Image.Image]) -> dict[int, int]:
    """Copies of benchmark pictures in the training data: row -> row of the benchmark."""
    copies = {
        3: made_pictures.resized(images[1], 1.7),
        4: made_pictures.encoded(images[2], 50),
        5: made_pictures.cropped(images[3], (0.03, 0.03, 0.0, 0.0)),
        6: made_pictures.encoded(made_pictures.cropped(images[6], (0.03, 0.03, 0.03, 0.03)), 80),
        7: made_pictures.resized(made_pictures.cropped(images[7], (0.0, 0.0, 0.03, 0.0)), 0.8),
    }
    for row, image in copies.items():
        image.save(folder / f"train/{row}.png")
    return {3: 1, 4: 2, 5: 3, 6: 6, 7: 7}


def run(*words: Any) -> int:
    return main(["corpus", "decontaminate", *map(str, words), "--workers", "1"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_planted_copies_are_found_and_1000_clean_records_are_not(tmp_path: Path, capsys: Any):
    records = training(tmp_path, 1000)
    task, images, questions = evaluation(tmp_path, 40)
    out, clean = tmp_path / "out", tmp_path / "clean.jsonl"

    data = write(tmp_path / "train.jsonl", records)
    assert run(data, "--against", task, "--out", out) == 0
    assert "1,000 records, 1,000 images, 2,000 texts; 0 to leave out" in capsys.readouterr().out
    assert lines(out / "pairs.jsonl") == []
    assert json.loads((out / "leave_out.json").read_text()) == {"rows": [], "ids": []}
    report = json.loads((out / "report.json").read_text())
    assert (report["data"]["hashed"], report["sets"][0]["hashed"]) == (1000, 40)
    assert report["prompts"] > 0  # the benchmark's own instruction is in every training record

    planted = plant(tmp_path, records, images)
    records[20]["conversations"][0]["value"] = f"<image>\n{shuffled_case(questions[11])}"
    records[21]["conversations"][1]["value"] = "Bai: " + questions[12].upper().replace(" ", "  ")
    data = write(tmp_path / "train.jsonl", records)
    assert run(data, "--against", task, "--out", tmp_path / "out2", "--clean", clean) == 0
    pairs = lines(tmp_path / "out2" / "pairs.jsonl")
    same = [(pair["data"]["row"], pair["task"]["row"]) for pair in pairs if pair["kind"] == "image"]
    assert dict(same) == planted
    assert len(same) == len(planted)
    texts = [pair for pair in pairs if pair["kind"] == "text"]
    assert [(pair["data"]["id"], pair["task"]["id"]) for pair in texts] == [
        *(("r20", "11"), ("r21", "12"))
    ]
    assert [pair["runs"] for pair in texts] == [6, 6]  # 18 words
    assert {pair["data"]["language"] + pair["task"]["language"] for pair in pairs} == {"euen"}
    rows = [*planted, 20, 21]
    left_out = json.loads((tmp_path / "out2" / "leave_out.json").read_text())
    assert left_out == {"rows": rows, "ids": [f"r{row}" for row in rows]}
    assert lines(clean) == [record for row, record in enumerate(records) if row not in rows]
    # of the pictures only those that changed were hashed again
    report = json.loads((tmp_path / "out2" / "report.json").read_text())
    assert (report["data"]["hashed"], report["sets"][0]["hashed"]) == (len(planted), 0)
    page = (tmp_path / "out2" / "report.html").read_text()
    assert page.count("<div class=pair>") == 7
    assert "<mark>" in page


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(training data, benchmark), one record of each the same."""
    folder = tmp_path_factory.mktemp("small")
    records = training(folder, 6)
    task, images, _ = evaluation(folder, 5)
    images[2].save(folder / "train/3.png")
    return write(folder / "train.json", records), task


def test_a_json_list_stays_one(small: tuple[Path, Path], tmp_path: Path):
    data, task = small
    clean = tmp_path / "clean.json"
    assert run(data, "--against", task, "--clean", clean) == 0
    before = json.loads(data.read_text(encoding="utf-8"))
    assert json.loads(clean.read_text(encoding="utf-8")) == before[:3] + before[4:]


def test_workers_and_several_sets_give_the_same(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, task = small
    monkeypatch.setattr(scan, "ROWS", 4)  # two parts
    other = write(tmp_path / "texts.jsonl", [{"id": "t", "text": "Beste testu bat, motza."}])
    cache = tmp_path / "cache"
    for number, words in enumerate((["--workers", "1"], ["--workers", "2"])):
        out = tmp_path / f"out{number}"
        against = ["--against", str(task), "--against", str(other), "--cache", str(cache)]
        call = ["corpus", "decontaminate", str(data), *against, "--out", str(out), *words]
        assert main(call) == 0
    first, second = ((tmp_path / f"out{n}" / "pairs.jsonl").read_bytes() for n in range(2))
    assert first == second
    assert first.count(b"\n") == 1
    assert sorted(path.name.split("_")[-1] for path in cache.iterdir()) == [
        *("benchmark.parquet", "train.json")
    ]  # the texts have no pictures


def test_texts_alone_are_compared_whole_from_eight_words_on(tmp_path: Path, capsys: Any):
    short, shorter = "Gizon bat kalean dabil txakur beltz handi batekin.", "Gizon bat kalean dabil."
    data = write(tmp_path / "a.jsonl", [{"text": short.upper()}, {"text": shorter}])
    task = write(tmp_path / "b.jsonl", [{"text": short}, {"text": shorter}])
    out = tmp_path / "out"
    assert run(data, "--against", task, "--out", out) == 0
    assert [pair["data"]["row"] for pair in lines(out / "pairs.jsonl")] == [0]
    assert "whole text" in (out / "report.html").read_text()
    assert f"{task}: no image in any column; only its texts" in capsys.readouterr().out


def test_rows_that_cannot_be_read_are_counted_in_data_and_refused_in_sets(
    small: tuple[Path, Path], tmp_path: Path, capsys: Any
):
    data, task = small
    records = json.loads(data.read_text(encoding="utf-8"))
    records[1]["image"] = "train/missing.png"
    records[4]["image"] = "/etc/passwd"
    broken = write(tmp_path / "broken.json", records)
    out = tmp_path / "out"
    assert run(broken, "--against", task, "--images", data.parent, "--out", out) == 0
    assert "2 rows could not be read" in capsys.readouterr().out
    assert [line["row"] for line in lines(out / "refused.jsonl")] == [1, 4]
    assert "no such image file" in (out / "report.html").read_text()
    assert run(task, "--against", broken, "--against-images", data.parent) == 2
    text = capsys.readouterr().err
    assert "2 of 6 records refused" in text
    assert text.count("\n") == 1


def test_a_damaged_cache_is_made_again(small: tuple[Path, Path], tmp_path: Path):
    data, task = small
    cache = tmp_path / "cache"
    assert run(data, "--against", task, "--cache", cache, "--out", tmp_path / "a") == 0
    for file in cache.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert run(data, "--against", task, "--cache", cache, "--out", tmp_path / "b") == 0
    first, second = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in "ab")
    assert first == second


def test_bad_input_is_one_line(small: tuple[Path, Path], tmp_path: Path, capsys: Any):
    data, task = small
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "odd.xyz").touch()
    empty = write(tmp_path / "empty.jsonl", [])
    cases = {
        ("missing.json", "--against", task): "missing.json: no such file or folder",
        (data, "--against", "missing.json"): "missing.json: no such file or folder",
        (data, "--against", tmp_path / "odd.xyz"): "expected a file, or a folder of files, named",
        (data, "--against", empty): "no records",
        (data, "--against", data): "is both the data and what it is compared with",
        (data, "--against", task, "--images", "nowhere"): "nowhere: no such folder of images",
        (data, "--against", task, "--out", tmp_path / "full"): "exists and is not empty",
        (data, "--against", task, "--clean", "c.jsonl"): "expected a file named .json",
        (data, "--against", task, "--clean", data): "is the data itself",
        (task, "--against", data, "--clean", "c.json"): "only JSON and JSONL files are written",
        (data, "--against", task, "--cache", tmp_path / "odd.xyz"): "another folder by --cache DIR",
    }
    for words, message in cases.items():
        assert run(*words) == 2, words
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
        assert "Traceback" not in text


@browser.needed
def test_the_page_fits_phone_and_desk(small: tuple[Path, Path], tmp_path: Path):
    data, task = small
    out = tmp_path / "out"
    assert run(data, "--against", task, "--out", out) == 0
    for width in (390, 1280):
        page = browser.show(out / "report.html", tmp_path, width)
        assert page.scroll <= page.client
