"""MME, MMMU, captions, OCR, perplexity and free conversations."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.task import Answer
from tests.evaluation.tasks.test_families import asked, lines, numbers
from tests.support.task_data import png, rows_file

# ---------------------------------------------------------------------------------------------- MME


def test_mme_counts_pairs(tmp_path: Path):
    text = "Is it red? Please answer yes or no."
    row = {"question_id": "count/1.png", "question": text, "image": "a.png", "category": "count"}
    rows = [{**row, "answer": "Yes"}, {**row, "answer": "No"}]
    rows += [{**one, "question_id": "2.png"} for one in rows]
    questions = asked("mme", tmp_path, *rows)
    assert questions[0].text == "Is it red?\nAnswer the question using a single word or phrase."
    assert [one.group for one in questions] == ["count/1.png"] * 2 + ["count/2.png"] * 2
    scores = numbers("mme", questions, "Yes", "No.", "Yes, it is", "perhaps")
    assert (scores["perception"], scores["count"]) == (125, 125)
    assert (scores["accuracy"], scores["accuracy_plus"], scores["unparseable"]) == (75, 50, 25)
    assert load_task("mme").printed(scores)["perception"] == "125.0"


# --------------------------------------------------------------------------------------------- MMMU


def mmmu_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": "validation_Computer_Science_1",
        "question": "Given <image 2> and <image 1>, which?",
        "options": "['a cat', 'a dog']",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": "1.png",
        "image_2": "2.png",
    }
    return row | changes


def test_mmmu(tmp_path: Path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png())
    open_row = mmmu_row(
        id="validation_Math_1", question_type="open", options="[]", answer="['1250', '1,250']"
    )
    questions = asked("mmmu", tmp_path, mmmu_row(), open_row)
    assert questions[0].images == (str(tmp_path / "1.png"), str(tmp_path / "2.png"))
    assert questions[0].text.endswith(
        "A. a cat\nB. a dog\n\nAnswer with the option's letter from the given choices directly."
    )
    assert questions[0].category == "Computer_Science"
    assert questions[1].truth == {"answers": ["1250", "1,250"]}
    assert questions[1].text.endswith("single word or phrase.")
    scores = numbers("mmmu", questions, "(B)", "So the total is 1250.0")
    assert (scores["accuracy"], scores["accuracy_Math"], scores["unparseable"]) == (100, 100, 0)
    assert numbers("mmmu", questions, "", "")["unparseable"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "C"}, "answer='C' is not one of A, B"),
        ({"question": "<image 3>?"}, "the text mentions image_3, which is empty"),
        ({"options": "[1]"}, "options=[1] is not a list of texts"),
    ],
)
def test_wrong_rows_of_mmmu(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ConfigError) as error:
        asked("mmmu", tmp_path, mmmu_row(**change))
    assert message in str(error.value)


# ------------------------------------------------------------------------------------ captions, OCR


def test_captions_of_xm3600(tmp_path: Path):
    row = {"image/key": "k", "it": {"caption": ["Un gatto nero.", "Il gatto è nero"]}}
    task = tmp_path / "t.yaml"
    data = "{it: {path: rows.jsonl, image_name: '{}.png'}}"
    task.write_text(f"from: xm3600\ndata: {data}", encoding="utf-8")
    rows_file(tmp_path, [row, {**row, "image/key": "l"}])
    for name in "kl":
        (tmp_path / f"{name}.png").write_bytes(png())
    questions = load_task(str(task)).questions("it", tmp_path)
    assert questions[0].truth == ["Un gatto nero.", "Il gatto è nero"]
    assert questions[0].text.startswith("Scrivi una didascalia")
    scores = numbers("xm3600", questions, "un Gatto nero", "")
    assert scores["unparseable"] == 50
    (first, _) = lines("xm3600", questions, "un Gatto nero", "")
    assert first["correct"] == 1
    assert load_task("captions").printed(scores)["Bleu_1"] == f"{scores['Bleu_1']:.6f}"


def test_ocr_in_basque(tmp_path: Path):
    row = {"image": "a.png", "transcription": "kaixo zer  moduz zauden?"}
    (question,) = asked("ocr", tmp_path, row, language="eu")
    assert question.text.endswith("itzuli.\nIrudia:")
    scores = numbers("ocr", [question], "Kaixo, zer moduz zaude?")
    assert scores["cer"] == scores["cer_mean"] == pytest.approx(100 * 2 / 23)
    assert scores["wer"] == 50
    with pytest.raises(ConfigError, match="the text of the image is empty"):
        asked("ocr", tmp_path, {**row, "transcription": " "}, language="eu")


# --------------------------------------------------------------------------------------- perplexity


def test_perplexity_of_true_answers(tmp_path: Path):
    rows = [{"question": "Cosa?", "file_name": "a.png", "answer": f"A{n}"} for n in range(3)]
    (tmp_path / "a.png").write_bytes(png())
    questions = asked("perplexity", tmp_path, *rows, language="it")
    task = load_task("perplexity")
    assert (task.kind, task.end_of_turn, questions[0].options) == ("perplexity", True, ("A0",))
    answers = [
        Answer("", (-loss * tokens,), (tokens,)) for tokens, loss in ((3, 1.2), (10, 0.8), (2, 7.5))
    ]
    scores = numbers("perplexity", questions, *answers)
    assert scores["perplexity"] == pytest.approx(5.890456, abs=1e-6)
    assert scores["perplexity_ndino"] == pytest.approx(2.772829, abs=1e-6)
    assert (scores["dropped"], scores["answer_tokens"]) == (1, 15)
    (line, *_) = lines("perplexity", questions, *answers)
    assert line["correct"] == pytest.approx(math.exp(-1.2))
    with pytest.raises(ConfigError, match="no log-likelihood and token count of the truth"):
        numbers("perplexity", questions[:1], "text")


# --------------------------------------------------------------------------------------------- free


def free_file(folder: Path) -> Path:
    turns = [("Zer da?", "Katu bat."), ("Eta hau?", "Txakurra")]
    conversation = [
        {"from": who, "value": ("<image>\n" if number == 0 and who == "human" else "") + text}
        for number, pair in enumerate(turns)
        for who, text in zip(("human", "gpt"), pair, strict=True)
    ]
    records = [
        {"id": "7", "image": "a.png", "language": "eu", "conversations": conversation},
        {"id": "8", "language": "en", "conversations": conversation[2:]},
    ]
    (folder / "a.png").write_bytes(png())
    file = folder / "held-out.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def test_free_conversations(tmp_path: Path):
    task = load_task("free").with_data(None, free_file(tmp_path))
    assert task.languages == ("eu", "en")
    questions = task.questions("eu", tmp_path)
    assert [one.id for one in questions] == ["7/0", "7/1"]
    assert len(questions[1].turns) == 3  # the true answer is before the second question
    assert questions[1].images == (str(tmp_path / "a.png"),)
    assert questions[1].options == ("Txakurra",)
    scores = numbers("free", questions, "katu bat", Answer("Txakur", finished=False))
    names = ("exact_match", "exact_match_ndino", "unfinished")
    assert [scores[name] for name in names] == [50, 50, 50]
    answers = Answer("Katu bat.", (-3.6,), (3,)), Answer("", (-8.0,), (10,))
    scores = numbers("free", questions, *answers)
    assert scores["perplexity"] == pytest.approx(math.exp(11.6 / 13))
    assert [one.id for one in task.questions("en", tmp_path)] == ["8"]
    text = (tmp_path / "held-out.json").read_text().replace('"8"', '"eight"')
    (tmp_path / "held-out.json").write_text(text)
    assert [one.id for one in task.questions("en", tmp_path)] == ["eight"]


def test_free_needs_a_file(tmp_path: Path):
    task = load_task("free")
    with pytest.raises(ConfigError, match="task free: no file of conversations in 'eu'; give --d"):
        task.questions("eu", tmp_path)
    with pytest.raises(ConfigError, match="task pope: --data FILE needs --language xx"):
        load_task("pope").with_data(None, tmp_path)
    with pytest.raises(ConfigError, match="no records in 'it'; there are eu, en"):
        task.with_data(None, free_file(tmp_path)).questions("it", tmp_path)
    file = tmp_path / "t.yaml"
    file.write_text("from: free\nremove: x", encoding="utf-8")
    with pytest.raises(ConfigError, match="remove: has no effect in family free"):
        load_task(str(file))
