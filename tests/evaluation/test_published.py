"""Published layouts of answers and truth: recognised, read, or named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation import published
from mllm_jax.evaluation.published import Entry


def file(folder: Path, value: Any, name: str = "a.json") -> Path:
    """A JSON file; of a tuple JSONL, of text the text itself."""
    path = folder / name
    if isinstance(value, tuple):
        text = "".join(json.dumps(item) + "\n" for item in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return path


def answers(path: Path) -> list[Entry]:
    return published.read_published_answers(path, published.read_content(path), "en")


def truths(path: Path) -> list[Entry] | None:
    return published.read_published_truth(path, published.read_content(path), "en")


SAMPLE = {
    "doc_id": 3,
    "doc": {},
    "target": "1",
    "arguments": {f"gen_args_{n}": {"arg_0": "C", "arg_1": f" {'ab'[n]}"} for n in range(2)},
    "filtered_resps": [["-2.5", "False"], ["-1.5", "True"]],
}


@pytest.mark.parametrize(
    "value",
    [
        ({"question_id": 7, "text": " Yes "}, {"question_id": 8, "text": "No"}),
        ({"question_id": "7", "prediction": "Yes"}, {"question_id": 8, "prediction": "No"}),
        [{"question_id": 7, "answer": "Yes"}, {"question_id": 8, "answer": "No"}],
        {"7": "Yes", "8": "No"},
        {"acc": 1, "outputs": {"7": "Yes", "8": "No"}},
    ],
)
def test_layouts_of_answers(tmp_path: Path, value: Any):
    entries = answers(file(tmp_path, value))
    assert [(one.question.id, one.answer.text) for one in entries] == [("7", "Yes"), ("8", "No")]
    assert not entries[0].has_truth


def test_lines_of_text(tmp_path: Path):
    path = file(tmp_path, "a cat\na dog \n", "hyp.txt")
    assert [(one.question.id, one.answer.text) for one in answers(path)] == [
        ("1", "a cat"),
        ("2", "a dog"),
    ]
    (first, _) = truths(path) or []
    assert first.question.truth == ["a cat"]


def test_samples_of_lm_eval(tmp_path: Path):
    old = {**SAMPLE, "arguments": [["C", " a"], ["C", " b"]], "target": " b", "doc_id": 4}
    first, second = answers(file(tmp_path, (SAMPLE, old)))
    assert first.answer.log_likelihoods == (-2.5, -1.5)
    assert first.question.options == second.question.options == (" a", " b")
    assert (first.question.truth, second.question.truth) == (1, 1)
    text = {"doc_id": 0, "doc": {}, "target": "4", "filtered_resps": ["4 "], "input": "2 + 2?"}
    (only,) = answers(file(tmp_path, (text,)))
    assert (only.answer.text, only.question.truth, only.question.text) == ("4", "4", "2 + 2?")
    del text["input"]
    text["arguments"] = {"gen_args_0": {"arg_0": "3 + 1?", "arg_1": {"until": []}}}
    (only,) = answers(file(tmp_path, (text,)))
    assert only.question.text == "3 + 1?"


def test_layouts_of_truth(tmp_path: Path):
    pope = ({"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"},)
    (entry,) = truths(file(tmp_path, pope, "coco_pope_random.json")) or []
    assert entry.question[:1] == ("1",)
    assert (entry.question.category, entry.question.truth) == ("random", "yes")
    turns = [{"from": "human", "value": "<image>\nZer?"}, {"from": "gpt", "value": "B"}]
    (entry,) = truths(file(tmp_path, [{"id": "q", "image": "a", "conversations": turns}])) or []
    assert (entry.question.text, entry.question.truth) == ("Zer?", "B")
    note = {"question_id": 1, "image_id": 5, "answers": [{"answer": "red"}] * 2}
    (entry,) = truths(file(tmp_path, {"annotations": [note]})) or []
    assert (entry.question.truth, entry.question.group) == (["red", "red"], "5")
    assert truths(file(tmp_path, [{"question": "?", "answer": "a"}])) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"id": 1, "response": "a"}], "a.json: a JSON list of {id, response}; known layouts of"),
        ([1], "a.json: a JSON list of int; known layouts"),
        ({"a": 1}, "a.json: a JSON object of {a}; known layouts"),
        (" ", "a.json: the file is empty"),
        ([], "a.json: an empty list"),
        ("{", "a.json:1: not JSON"),
        ("[1", "a.json:1: not JSON"),
        (({"question_id": 1, "text": "a"}, {"question_id": 2}), "a.json:2: no text or prediction"),
        (({"question_id": 1, "text": "a"}, [2]), "a.json:2: not an object, as the lines"),
        (({"question_id": [], "text": "a"},), "id [] is neither text nor a number"),
        ((SAMPLE, {**SAMPLE, "target": "2"}), "a.json:2: target '2' is not one of 2 options"),
        ((SAMPLE, {**SAMPLE, "target": "x" * 500}), "xxx' is not one of 2 options"),
        ((SAMPLE, {"target": 1, "filtered_resps": ["a"]}), "a.json:2: no 'doc_id', which this"),
        ((SAMPLE, {"doc_id": 1, "filtered_resps": ["a"]}), "a.json:2: no target, the truth of"),
        (({**SAMPLE, "filtered_resps": []},), "a.json: filtered_resps [] is not a list of"),
        (({**SAMPLE, "filtered_resps": "yes"},), "filtered_resps 'yes' is not a list of resp"),
        (
            ({"question_id": 1, "text": "a"}, {"text": "a"}),
            "a.json:2: no question_id or quest",
        ),
        ({"outputs": {}}, "a.json: no answers"),
        (({**SAMPLE, "filtered_resps": [["-1", "True"]]},), "2 options, 1 responses"),
    ],
)
def test_what_is_not_known_is_named(tmp_path: Path, value: Any, message: str):
    with pytest.raises(ConfigError) as error:
        answers(file(tmp_path, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_text(tmp_path: Path):
    path = tmp_path / "hyp.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        answers(path)
    with pytest.raises(ConfigError, match="a folder; name a file in it"):
        answers(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        answers(tmp_path / "none")


def test_files_of_windows(tmp_path: Path):
    rows = [{"question_id": 1, "text": "Bai"}, {"question_id": 2, "text": "Ez"}]
    data = "\r\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    assert [entry.answer.text for entry in answers(tmp_path / "a.jsonl")] == ["Bai", "Ez"]
    (tmp_path / "hyp.txt").write_bytes(b"\xef\xbb\xbf" + "a\u2028b\r\nc\r\n".encode())
    assert [entry.answer.text for entry in answers(tmp_path / "hyp.txt")] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "1,yes\n2,no\n"), ("a.json", '"yes"'), ("a", "yes\nno\n")]
)
def test_lines_of_text_are_in_a_file_of_text(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"neither JSON nor JSONL .*; a file of lines is named"):
        answers(tmp_path / name)
