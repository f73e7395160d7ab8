"""Lines of answers.jsonl: written, read, judged again, and refused in one line."""

import json
from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.records.parse import user_turn
from mllm_jax.evaluation import answers
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question

QUESTION = Question(
    id="7",
    language="eu",
    turns=(user_turn("Zer da?", 1),),
    images=(b"abc",),
    truth=["katua", "katu"],
    options=("katua", "txakurra"),
    group="a.jpg",
    category="animals",
)
ANSWER = Answer("Katua.", (-1.5, -2.25), (2, 3), False)
JUDGED = Judged("katua", 1.0, {"edits": 0.0})


def line(**changes) -> dict:
    made = answers.make_line("vqa", QUESTION, ANSWER, JUDGED, "<|user|>Zer da?")
    return made | changes


def written(folder: Path, *lines: dict) -> Path:
    file = folder / "answers.jsonl"
    file.write_text("".join(map(answers.write_line, lines)), encoding="utf-8")
    return file


def test_what_is_written_is_read(tmp_path: Path):
    file = written(tmp_path, line(), line(id="8", more=[1]))
    first, second = answers.read_answers(file)
    assert first == line()
    assert second["more"] == [1]
    assert first["question"] == "Zer da?"
    assert first["images"][0].startswith("sha256:ba7816bf")  # of b"abc", FIPS 180-2
    assert "ñ" in answers.write_line(line(answer="ñ"))


def test_a_line_can_be_judged_again():
    again, answer = answers.question_of(line()), answers.answer_of(line())
    assert answer == ANSWER
    for name in ("id", "language", "truth", "options", "group", "category", "text"):
        assert getattr(again, name) == getattr(QUESTION, name)
    assert list(again.images) == line()["images"]
    assert answers.make_line("vqa", again, answer, JUDGED, "<|user|>Zer da?") == line()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": 3}, "language 3 is not text"),
        ({"images": "a.png"}, "images 'a.png' is not a list"),
        ({"images": [1]}, "images [1] is not a list of texts"),
        ({"correct": 2}, "correct 2 is not a number from 0 to 1"),
        ({"correct": True}, "correct True is not a number from 0 to 1"),
        ({"finished": 1}, "finished 1 is not true or false"),
        ({"parsed": 1}, "parsed 1 is not text or null"),
        ({"numbers": {"a": "b"}}, "numbers {'a': 'b'} is not an object of numbers"),
        ({"tokens": ["1", 2]}, "tokens ['1', 2] is not a list of whole numbers"),
        ({"tokens": [1.5, 2]}, "tokens [1.5, 2] is not a list of whole numbers above 0"),
        ({"tokens": [0, 2]}, "tokens [0, 2] is not a list of whole numbers above 0"),
        ({"log_likelihoods": [-1.0, 3.0]}, "is not a list of numbers that are not above 0"),
        ({"log_likelihoods": [-1.0]}, "is not as long as options (2)"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, changes: dict, message: str):
    file = written(tmp_path, line(), line(id="8", **changes))
    with pytest.raises(ConfigError, match=r"answers\.jsonl:2: ") as error:
        answers.read_answers(file)
    assert message in str(error.value)


def test_bad_files_are_named(tmp_path: Path):
    file = tmp_path / "answers.jsonl"
    with pytest.raises(ConfigError, match="no such file"):
        answers.read_answers(file)
    for text, message in (
        ("\n\n", "no answers"),
        ("{", ":1: not JSON"),
        ("[]", ":1: not an object"),
        (json.dumps({"task": "a", "id": "b"}), ":1: no language, group, category"),
        (answers.write_line(line()) * 2, "answers.jsonl:1 already; keep one"),
        (answers.write_line(line()).replace("-1.5", "NaN"), ":1: log_likelihoods"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as error:
            answers.read_answers(file)
        assert message in str(error.value)


def test_a_file_of_windows_is_read(tmp_path: Path):
    file = written(tmp_path, line(), line(id="8"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert answers.read_answers(file) == [line(), line(id="8")]


def test_numbers_that_json_does_not_know_are_not_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        answers.write_line(line(numbers={"a": float("inf")}))


def test_languages_come_in_order_of_appearance():
    lines = [line(language=name) for name in ("it", "eu", "it")]
    assert answers.languages_of(lines) == ("it", "eu")
