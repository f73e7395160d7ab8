"""`evaluate --fidelity --chrf`: the same questions without pictures; stored, resumed, scored."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from mllm_jax import __main__ as command_line
from mllm_jax.commands.recipe import results
from mllm_jax.config.recipe import EvaluateConfig
from mllm_jax.data.records.parse import IMAGE, Turn
from mllm_jax.evaluation import asking
from mllm_jax.evaluation.parts import text_alone
from mllm_jax.evaluation.tasks.task import Question
from mllm_jax.generation.engine import Answerer
from mllm_jax.training.loop import train
from tests.support import tiny

BASQUE = "Txakur beltz handi bat belardian korrika dabil."
ENGLISH = "A large black dog is running on the grass."
RECORDS = [
    (["0.png"], "<image>\nZer da hau?"),
    (["1.png", "2.png"], "<image>\n<image>\nZer dira hauek?"),
    ([], "Zer da txakur bat?"),
    (["3.png"], "<image>\nZer ikusten da?"),
]
WITHOUT = "answers.without-images.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.make_data(folder)
    records = tiny.asked([(*one, BASQUE) for one in RECORDS])
    (folder / "asked.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    config = tiny.config(
        data, tmp_path_factory.mktemp("run") / "run", train={"steps": 2, "save_every": 2}
    )
    return train(config, devices=jax.devices()[:1])


@pytest.fixture
def spoken(monkeypatch):
    """A model that answers in English about pictures, and in Basque about text."""

    def say(self, prompts, images, *_, **__) -> list[list[int]]:
        texts = [ENGLISH if tiles else BASQUE for tiles in images.pictures]
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [[*one, *self.ends[:1]] for one in ids]

    monkeypatch.setattr(Answerer, "answer", say)


def evaluate(run: Path, data: Path, out: Path, *more: str) -> int:
    words = ["evaluate", str(run), "--data", str(data / "asked.json"), "--out", str(out)]
    words += ["--images", str(data / "images"), "--rows", "2", "--devices", "1"]
    return command_line.main([*words, "--cache", str(out.parent / "cache"), *more])


ASKED = ("--fidelity", "eu", "en", "--chrf")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def test_what_a_picture_costs_is_measured_stored_and_scored(run, data, tmp_path, capsys, spoken):
    out = tmp_path / "out"
    assert evaluate(run, data, out, *ASKED) == 0
    printed = capsys.readouterr().out
    assert "language identified by py3langid" in printed
    (result,) = json.loads((out / "results.json").read_text())
    expected = {
        "language_fidelity": 25.0,
        "undecided": 0.0,
        "identifier_accuracy": 100.0,
        "identifier_undecided": 0.0,
        "language_fidelity_image": 0.0,
        "undecided_image": 0.0,
        "language_fidelity_without_image": 100.0,
        "undecided_without_image": 0.0,
        "image_loss": 100.0,
    }
    assert {name: result["metrics"][name] for name in expected} == expected
    assert 25 <= result["metrics"]["chrf"] < 60
    assert result["signatures"].keys() == {"chrf", "chrf++", "bleu"}
    table = (out / "results.md").read_text()
    assert "| image_loss" in table and "- chrf: `nrefs:1|" in table
    lines = [json.loads(line) for line in (out / WITHOUT).read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["r0", "r1", "r3"]
    assert all(line["answer"] == BASQUE and not line["images"] for line in lines)
    assert [line["question"] for line in lines[:2]] == ["Zer da hau?", "Zer dira hauek?"]
    assert "<image>" not in lines[0]["prompt"] and lines[0]["without_images"]
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in answers] == ["r0", "r1", "r2", "r3"]
    page = (out / "results.html").read_text("utf-8")
    assert page.count("without the picture:") == 3 and "language identified by" in page
    settings = json.loads((out / "settings.json").read_text())
    assert settings["fidelity"]["languages"] == ["eu", "en"] and settings["chrf"]
    again = tmp_path / "score.json"
    words = ["score", "free", "--answers", str(out / "answers.jsonl"), *ASKED]
    words += ["--without-images", str(out / WITHOUT), "--json", str(again)]
    assert command_line.main(words) == 0
    assert json.loads(again.read_text())["metrics"] == result["metrics"]


def test_a_recipe_has_the_same_numbers(run, data, tmp_path, capsys, spoken):
    asked, images = str(data / "asked.json"), str(data / "images")
    options: dict[str, Any] = {"fidelity": ("eu", "en"), "chrf": True, "rows": 2, "devices": 1}
    results.evaluate_model(EvaluateConfig(asked, images, **options), run, tmp_path / "recipe")
    assert "| image_loss" in capsys.readouterr().out
    assert evaluate(run, data, tmp_path / "command", *ASKED) == 0
    for name in ("answers.jsonl", WITHOUT, "results.json"):
        assert (tmp_path / "recipe" / name).read_bytes() == (
            tmp_path / "command" / name
        ).read_bytes()


def test_measured_before_and_interrupted(run, data, tmp_path, capsys, spoken, monkeypatch):
    """Only what was not asked is asked; the folder is the same to the byte."""
    assert evaluate(run, data, tmp_path / "whole", *ASKED) == 0
    ask, count = asking.ask, 0

    def some(*arguments):
        nonlocal count
        for lines in ask(*arguments):
            if count == 3:  # of two batches with pictures and text, and two without
                raise KeyboardInterrupt
            count += 1
            yield lines

    out = tmp_path / "b" / "out"
    with monkeypatch.context() as patch:
        patch.setattr("mllm_jax.evaluation.runner.ask", some)
        assert evaluate(run, data, out, *ASKED) == 130
    assert evaluate(run, data, out, "--resume", *ASKED) == 0
    assert contents(out) == contents(tmp_path / "whole")
    plain = tmp_path / "c" / "plain"
    assert evaluate(run, data, plain) == 0  # asks the questions alone
    monkeypatch.setattr(Answerer, "answer", None)
    monkeypatch.setattr(Answerer, "losses", None)
    assert evaluate(run, data, tmp_path / "once", *ASKED) == 0
    assert contents(tmp_path / "once") == contents(tmp_path / "whole")
    assert "free, eu, without images: 3 answers" in capsys.readouterr().out
    assert not (plain / WITHOUT).exists()
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {path.name for path in (plain.parent / "cache").iterdir()} < names


def test_questions_lose_their_images_alone():
    def question(*turns: Turn) -> Question:
        images = tuple("a.png" for turn in turns for part in turn.parts if part is IMAGE)
        return Question("q", "eu", turns, images, "bai", ("bai",))

    asked = [
        question(
            Turn("user", (IMAGE, "\n", IMAGE, "\nZer da?")),
            Turn("assistant", (" Katua ",)),
            Turn(
                "user",
                (
                    "Eta ",
                    IMAGE,
                    " hau?",
                ),
            ),
        ),
        question(Turn("user", ("Zer?",))),
        question(Turn("user", (IMAGE,))),
    ]
    (alone,) = text_alone(asked)
    assert [turn.parts for turn in alone.turns] == [("Zer da?",), (" Katua ",), ("Eta  hau?",)]
    assert alone.images == alone.options == () and alone.truth == "bai"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--fidelity", "es", "en"), "'eu' is not among those to tell apart: es, en"),
        (("--fidelity", "eu"), "needs two languages or more"),
        (("--fidelity", "eu", "zz"), "fidelity: task free: py3langid"),
        (("--identifier", "lid.bin"), "--identifier is used with --fidelity"),
        (("--fidelity", "eu", "en", "--identifier", "no.bin"), "no.bin: no such file"),
        (("--task", "xstorycloze.yaml", "--language", "eu", "--fidelity", "eu", "en"),
         "asks for no text"),
        (("--task", "mmmu.yaml", "--language", "eu", "--chrf"), "chrf: task mmmu: "),
    ],
)  # fmt: skip
def test_refused_before_anything_is_asked(more, message, run, data, tmp_path, monkeypatch, capsys):
    out, rows = tmp_path / "out", [{"question": "a", "o": "b", "answer": "A", "n": "0", "id": "1"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mmmu.yaml").write_text(
        "family: choices\ncolumns: {question: question, answer: answer}\nimage_columns: []\n"
        "option_columns: [o]\nanswer: letter\ndata: {eu: {path: rows.jsonl}}\n"
    )
    (tmp_path / "xstorycloze.yaml").write_text(
        'family: text_choices\ntemplate: {"*": "{question}"}\noption_columns: [o]\n'
        "columns: {answer: n}\ndata: {eu: {path: rows.jsonl}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Answerer, "params", None)
    words = ["evaluate", str(run), "--out", str(out), *more]
    if "--task" not in more:
        words += ["--data", str(data / "asked.json")]
    assert command_line.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists() or not [path for path in out.iterdir() if path.name != ".lock"]
