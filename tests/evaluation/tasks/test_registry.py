"""Task files: those that are shipped, and a user's that change one."""

from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.tasks.choices import Choices
from mllm_jax.evaluation.tasks.registry import FAMILIES, FILES, load_task, task_names
from tests.support.task_data import rows_file

ITALIAN = "\nRispondi utilizzando una sola parola o frase."  # LLaVA-NDiNO's tasks


@pytest.mark.parametrize("name", task_names())
def test_shipped_tasks_load(name: str):
    task = load_task(name)
    assert task.name == name
    assert task.settings["family"] in FAMILIES
    for one in task.data.values():  # revisions are pinned by those who fetch: none is invented
        assert one.revision is None


def test_every_family_is_shipped():
    assert {load_task(name).family for name in task_names()} == set(FAMILIES)


def test_the_authors_prompts():
    for name, count in (("gqa", 16), ("okvqa", 16), ("mtvqa", 16), ("pope", 128)):
        task = load_task(name)
        assert task.post_prompt["it"] == ITALIAN
        assert task.max_new_tokens == count
    letter = "\nRispondi utilizzando la lettera dell'opzione corretta."
    for name, count in (("seedbench", 128), ("exams_v", 16)):
        task = load_task(name)
        assert (task.post_prompt["it"], task.max_new_tokens) == (letter, count)
    mmstar = load_task("mmstar")
    assert mmstar.pre_prompt["eu"].endswith("(A, B, C edo D).\nGaldera: ")
    assert mmstar.max_new_tokens == 10


def test_every_prompt_is_in_english_basque_and_italian():
    for name in task_names():
        task = load_task(name)
        rows_hold_questions = "question" in task.columns
        for prompts in (
            {} if rows_hold_questions else task.question,
            task.pre_prompt,
            task.post_prompt,
        ):
            assert not prompts or "*" in prompts or {"en", "eu", "it"} <= prompts.keys(), name


def test_a_name_may_end_with_a_language():
    assert load_task("pope_it").languages == ("it",)
    assert load_task("pope_it").name == "pope"


def test_a_file_changes_a_task(tmp_path: Path):
    rows_file(
        tmp_path, [{"question_id": 1, "question": "Je li?", "image": "a.png", "answer": "da"}]
    )
    text = """
from: pope
data: {hr: {path: rows.jsonl}}
post_prompt: {hr: "\\nOdgovori jednom riječju."}
words: {hr: {name: Croatian, "yes": [da], "no": [ne], negations: [ne, Ne]}}
max_new_tokens: 8
"""
    file = tmp_path / "pope_hr.yaml"
    file.write_text(text, encoding="utf-8")
    task = load_task(str(file))
    assert task.name == "pope_hr"
    assert task.languages == ("hr",), "its own data's alone"
    assert task.max_new_tokens == 8
    assert set(task.post_prompt) == {"en", "it", "eu", "hr"}
    (question,) = task.questions("hr", tmp_path)
    assert question.text == "Je li?\nOdgovori jednom riječju."
    assert question.truth == "yes"
    assert question.images == (str(tmp_path / "a.png"),)
    other = tmp_path / "again.yaml"
    other.write_text("from: pope_hr.yaml\nrule: strict\n", encoding="utf-8")
    assert load_task(str(other)).settings["rule"] == "strict"
    assert load_task(str(other)).languages == ("hr",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family: yes_no\nrul: official", "rul: unknown key; did you mean 'rule'?"),
        ("from: pope\nrule: strickt", "rule: expected official or lmms-eval or ndino or strict"),
        ("family: yesno", "family='yesno': expected captions or choices or"),
        ("rule: official", "family=None: expected"),
        ("from: pop", "task 'pop' is not known; did you mean pope?"),
        ("from: [pope]", "from: ['pope'] is not the name of a task"),
        ("from: t.yaml", "starts from itself"),
        ("from: pope\ndata: {hr: {split: test}}", "data.*: give a path, or a hub to fetch from"),
        ("from: pope\ndata: {hr: {pth: a}}", "data.hr.pth: unknown key"),
        ("family: text_choices", "give either option_columns or fixed_options"),
        ("from: pope\nmax_new_tokens: 0", "max_new_tokens=0 must lie in"),
        ("from: pope\nwords: {hr: {nam: a}}", "words.hr.nam: unknown key"),
        ("from: pope\nwords: {hr: {name: a, yes: [da]}}", "words.hr.True: unknown key; put it in"),
        ('from: pope\nwords: {hr: {name: a, "yes": []}}', "words of a: yes has no words"),
        ("from: pope\nwords: {hr: {name: a, letters: AA}}", "letters='AA' are not two or more"),
        ("from: pope\nwords: {hr: {name: a, letters: abc}}", "letters='abc' are not two or more"),
        ("", "the file is empty; expected sections"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "t.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_task(str(file))
    assert message in str(error.value)
    assert str(error.value).count(str(file)) <= 1, "the file is named once"
    assert str(file) in str(error.value) or "not known" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("popr", "task 'popr' is not known; did you mean pope?"),
        ("no.yaml", "task 'no.yaml': no such file"),
        ("folder/no", "task 'folder/no': no such file"),
        ("pope_xx", "task pope: no published data in 'xx' are known; there are en, it"),
    ],
)
def test_unknown_tasks(name: str, message: str):
    with pytest.raises(ConfigError) as error:
        load_task(name)
    assert message in str(error.value)


def test_shipped_files_are_packed():
    assert FILES.is_dir()
    assert issubclass(FAMILIES["choices"], Choices)
