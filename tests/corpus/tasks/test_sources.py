"""LLaVA files of several languages, paired by id, are aligned records."""

import json
from pathlib import Path

import pytest

from tests.corpus.tasks.test_tasks import ORACLE, read, refused, run, turns, write


def llava(key, question: str, answer: str, image="42.jpg", more: tuple = ()) -> dict:
    texts = [f"<image>\n{question}", answer, *more]
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"id": key, "image": image, "conversations": turns}


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    english = [llava("1", "Who?", "Me."), llava("42", "What animal is this?", "A cat.")]
    basque = [llava("42", "Zein animalia da hau?", "Katu bat."), llava("x", "Non?", "Han.")]
    (tmp_path / "en.json").write_text(json.dumps(english), "utf-8")
    return {"en": tmp_path / "en.json", "eu": write(tmp_path / "eu.jsonl", basque)}


def words(files: dict[str, Path]) -> list[str]:
    return ["--parallel", *(f"{code}={file}" for code, file in files.items())]


def test_paired_by_id(tmp_path, files):
    assert run(*words(files), "--out", tmp_path / "out") == 0
    made = read(tmp_path / "out")
    got = {record["id"]: turns(record) for of in made.values() for record in of}
    assert {key: value for key, value in got.items() if key.startswith("42/")} == ORACLE
    assert [record["id"] for record in made["mvqa_en"]] == ["1/mvqa/en", "42/mvqa/en"]
    assert [record["id"] for record in made["mvqa_eu"]] == ["42/mvqa/eu", "x/mvqa/eu"]


def test_rounds_are_records_of_their_own(tmp_path):
    more = {"en": ("And then?", "Gone."), "eu": ("Eta gero?", "Joan da.")}
    files = {
        code: write(tmp_path / f"{code}.jsonl", [llava(7, f"{code}?", f"{code}.", more=of)])
        for code, of in more.items()
    }
    assert run(*words(files), "--out", tmp_path / "out", "--tasks", "mvqa") == 0
    made = read(tmp_path / "out")["mvqa_eu"]
    assert [(r["id"], *turns(r)[:2]) for r in made] == [
        ("7/1/mvqa/eu", "<image>\neu?", "eu."),
        ("7/2/mvqa/eu", "<image>\nEta gero?", "Joan da."),
    ]


def test_what_cannot_be_paired_is_one_line(tmp_path, capsys, files):
    out = tmp_path / "out"
    longer = write(tmp_path / "long.jsonl", [llava("42", "a", "b", more=("c", "d"))])
    assert "rounds" in refused(capsys, *words(files | {"it": longer}), "--out", out)
    other = write(tmp_path / "other.jsonl", [llava("42", "a", "b", image="43.jpg")])
    assert "another image" in refused(capsys, *words(files | {"it": other}), "--out", out)
    twice = write(tmp_path / "twice.jsonl", [llava("42", "a", "b"), llava(42, "a", "b")])
    assert "twice.jsonl:2" in refused(capsys, *words(files | {"it": twice}), "--out", out)
    assert "LANGUAGE=FILE" in refused(capsys, "--parallel", files["en"], "--out", out)
    assert "two languages" in refused(capsys, "--parallel", f"en={files['en']}", "--out", out)
    assert "or --parallel" in refused(capsys, "--out", out)
    assert not out.exists()
