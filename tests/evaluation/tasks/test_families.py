"""What each family asks, and what it makes of an answer."""

from pathlib import Path
from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.answers import make_line
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.task import Answer, Question
from tests.support.task_data import rows_file


def asked(name: str, folder: Path, *rows: dict[str, Any], language: str = "en") -> list[Question]:
    task = load_task(name).with_data(language, rows_file(folder, rows))
    return task.questions(language, folder)


def lines(name: str, questions: list[Question], *texts: str | Answer) -> list[dict[str, Any]]:
    task, made = load_task(name), []
    for question, text in zip(questions, texts, strict=True):
        answer = Answer(text) if isinstance(text, str) else text
        made.append(make_line(name, question, answer, task.judge(question, answer)))
    return made


def numbers(name: str, questions: list[Question], *texts: str | Answer) -> dict[str, float]:
    return load_task(name).metrics(lines(name, questions, *texts))


# ------------------------------------------------------------------------------------------- yes/no

POPE = [
    {
        "question_id": n,
        "question": "?",
        "image": "a.png",
        "answer": ("yes", "no")[n % 2],
        "category": ("random", "popular")[n // 2],
    }
    for n in range(4)
]


def test_pope_counts_categories_and_unparseable_answers(tmp_path: Path):
    questions = asked("pope", tmp_path, *POPE)
    scores = numbers("pope", questions, "Yes", "No, it is not.", "Perhaps", "")
    assert scores["accuracy"] == 75  # officially all that is not no is yes
    assert scores["unparseable"] == 50
    assert scores["f1_random"] == 100
    assert scores["f1_popular"] == pytest.approx(200 / 3)
    assert scores["f1_mean"] == pytest.approx((100 + 200 / 3) / 2)


def test_pope_by_the_harnesses_rules(tmp_path: Path):
    questions = asked("pope", tmp_path, *POPE)
    answers = ("Yes", "No.", "Perhaps", "yes")
    assert numbers("pope_lmms_eval", questions, *answers)["accuracy"] == 25
    assert numbers("pope_ndino", questions, *answers)["accuracy"] == 50
    assert numbers("pope_lmms_eval", questions, *answers)["yes_share"] == 50  # of the truth


def test_pope_in_basque(tmp_path: Path):
    row = {"question_id": 1, "question": "Ba al dago?", "image": "a.png", "answer": "bai"}
    questions = asked(
        "pope", tmp_path, row, {**row, "question_id": 2, "answer": "ez"}, language="eu"
    )
    assert [one.truth for one in questions] == ["yes", "no"]
    assert numbers("pope", questions, "Bai", "Ez dago.")["accuracy"] == 100
    assert lines("pope", questions, "Yes", "")[1]["parsed"] is None


# ----------------------------------------------------------------------------------- short answers


def test_exact_match_is_named_both_ways(tmp_path: Path):
    row = {"id": 1, "question": "Cos'è?", "imageId": "a.png", "image": "a.png", "answer": "l'uomo"}
    questions = asked("gqa", tmp_path, row, {**row, "id": 2}, language="it")
    scores = numbers("gqa", questions, "L’uomo", "Luomo.")
    assert scores["exact_match_ndino"] == 50
    assert scores["exact_match"] == 0
    assert numbers("gqa", questions, "", "L'uomo")["unparseable"] == 50


def test_exam_questions_inside_images(tmp_path: Path):
    rows = [
        {"sample_id": "s", "image": "a.png", "answer_key": "B", "language": "English"},
        {"sample_id": "t", "image": "a.png", "answer_key": "C", "language": "Italian"},
    ]
    rows_file(tmp_path, rows)
    task = tmp_path / "t.yaml"
    columns = "{id: sample_id, answer: answer_key}"
    only = "{language: English}"
    data = f"{{en: {{path: rows.jsonl, only: {only}, columns: {columns}}}}}"
    task.write_text(f"from: exams_v\ndata: {data}", encoding="utf-8")
    (question,) = load_task(str(task)).questions("en", tmp_path)
    assert question.text.startswith("Answer the question in the image.\nAnswer with the option")
    assert numbers("exams_v", [question], "(b)")["exact_match_ndino"] == 100
    row = {"question": "Quale?\nA. x", "image": "a.png", "answer": "A"}
    (question,) = asked("exams_v", tmp_path, row, language="it")
    assert question.text.startswith("Quale?\nA. x\nRispondi utilizzando la lettera")


def test_vqa_soft_accuracy(tmp_path: Path):
    answers = [{"answer": "red", "answer_id": n} for n in range(3)]
    answers += [{"answer": "pink", "answer_id": n} for n in range(3, 10)]
    row = {"question_id": 1, "question": "?", "image": "a.png", "answers": answers}
    row["answer_type"] = "other"
    questions = asked("vqav2", tmp_path, row)
    assert questions[0].truth == ["red"] * 3 + ["pink"] * 7
    assert numbers("vqav2", questions, "Red")["accuracy"] == pytest.approx(90)
    row = {"question_id": 1, "question": "?", "image": "a.png", "answers": ["red"] * 10}
    assert numbers("okvqa", asked("okvqa", tmp_path, row), "a red")["accuracy"] == 100


def test_a_okvqa(tmp_path: Path):
    row = {
        "question_id": "q",
        "question": "What?",
        "image": "a.png",
        "choices": ["cat", "dog"],
        "correct_choice_idx": 1,
        "direct_answers": "['dog', 'dog', 'cat']",
        "difficult_direct_answer": False,
    }
    hard = {**row, "question_id": "hard", "difficult_direct_answer": True}
    questions = asked("aokvqa", tmp_path, row, hard)
    assert [one.id for one in questions] == ["q"]
    assert questions[0].text.startswith("What?\nA. cat\nB. dog\nAnswer with")
    assert numbers("aokvqa", questions, "B.")["accuracy"] == 100
    assert numbers("aokvqa", questions, "Dog")["accuracy"] == 100
    direct = asked("aokvqa_direct", tmp_path, row)
    assert numbers("aokvqa_direct", direct, "dog")["accuracy"] == pytest.approx(200 / 3)
    with pytest.raises(ConfigError, match="is not a list as Python writes it"):
        asked("aokvqa_direct", tmp_path, {**row, "direct_answers": "[dog"})


# ---------------------------------------------------------------------------------------- letters


def test_seed_bench_as_ndino_asks_it(tmp_path: Path):
    row = {"question_id": 1, "question": "Cosa?", "image": ["a.png", "b.png"], "answer": "c"}
    row |= {f"choice_{letter}": f"scelta {letter}" for letter in "abcd"} | {"data_type": "image"}
    (question,) = asked("seedbench", tmp_path, row, language="it")
    assert question.text == (
        "Cosa?\nA. scelta a\nB. scelta b\nC. scelta c\nD. scelta d\n"
        "Rispondi utilizzando la lettera dell'opzione corretta."
    )
    assert len(question.images) == 2
    assert numbers("seedbench", [question], "c) scelta")["accuracy"] == 100
    assert numbers("seedbench", [question], "(C)")["unparseable"] == 100


def test_mmbench_needs_all_rotations(tmp_path: Path):
    row = {"index": 5, "question": "Which?", "hint": "Look.", "image": "a.png", "answer": "B"}
    row |= {"A": "cat", "B": "dog", "C": "cow", "D": "nan", "category": "x"}
    questions = asked("mmbench", tmp_path, row, {**row, "index": 6})
    assert [one.id for one in questions] == ["5/0", "5/1", "5/2", "6/0", "6/1", "6/2"]
    assert questions[1].text.startswith("Look.\nWhich?\nA. dog\nB. cow\nC. cat\nAnswer")
    assert [one.truth["letter"] for one in questions[:3]] == ["B", "A", "C"]
    scores = numbers("mmbench", questions, "B", "A", "C", "B", "B", "C")
    assert (scores["circular"], scores["vanilla"]) == (50, 100)
    stored = lines("mmbench", questions, "B", "A", "C", "A", "A", "C")
    assert load_task("mmbench").metrics(stored[::-1])["vanilla"] == 50
    task = load_task("mmbench").with_data("en", tmp_path / "rows.jsonl")
    assert len(task.questions("en", tmp_path, limit=5)) == 3  # whole sets of rotations alone
    with pytest.raises(ConfigError, match="limit 2 is less than one question's options"):
        task.questions("en", tmp_path, limit=2)


def test_mmstar_also_by_likelihood(tmp_path: Path):
    row = {"index": 0, "question": "Which?\nOptions: A: x, B: y", "image": "a.png", "answer": "B"}
    row["category"] = "math"
    (question,) = asked("mmstar", tmp_path, row, language="eu")
    assert question.options == ("A", "B", "C", "D")
    assert question.text.startswith("Irudiei buruzko")
    answer = Answer("The answer is A", (-3.0, -1.0, -2.0, -9.0), (1, 1, 1, 1))
    scores = numbers("mmstar", [question], answer)
    assert (scores["accuracy"], scores["accuracy_likelihood"]) == (0, 100)


def test_scienceqa_prompt_is_llavas(tmp_path: Path):
    row = {"question": "Which?", "hint": "Once.", "choices": ["x", "y"], "answer": 1, "image": None}
    questions = asked("scienceqa", tmp_path, row, {**row, "image": "a.png", "hint": ""})
    assert questions[0].text.startswith("Context: Once.\nWhich?\nA. x\nB. y\nAnswer")
    scores = numbers("scienceqa", questions, "B. y", "A")
    assert (scores["accuracy_text"], scores["accuracy_image"]) == (100, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_choice_idx": 2}, "correct_choice_idx='2' is not a number below 2"),
        ({"choices": []}, "0 options; 1 to 26 are allowed"),
        ({"choices": [1]}, "choices=[1] is not a list of texts"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, change: dict, message: str):
    row = {"question_id": "q", "question": "?", "image": "a.png", "choices": ["cat", "dog"]}
    row |= {"correct_choice_idx": 1, "difficult_direct_answer": False, **change}
    with pytest.raises(ConfigError) as error:
        asked("aokvqa", tmp_path, row)
    assert message in str(error.value)


# ------------------------------------------------------------------------------- text by likelihood


def test_options_by_log_likelihood(tmp_path: Path):
    row = {f"input_sentence_{n}": f"S{n}." for n in range(1, 5)} | {"story_id": "s"}
    row |= {"sentence_quiz1": "Bat.", "sentence_quiz2": "Hiru lau.", "answer_right_ending": 2}
    questions = asked("xstorycloze", tmp_path, row, {**row, "story_id": "t"}, language="eu")
    task, question = load_task("xstorycloze"), questions[0]
    assert question.text == "S1. S2. S3. S4."
    assert question.options == (" Bat.", " Hiru lau.")
    assert (question.truth, task.kind, task.chat) == (1, "choose", False)
    answers = Answer("", (-8.0, -9.0), (4, 3)), Answer("", (-9.0, -8.0), (4, 3))
    scores = numbers("xstorycloze", questions, *answers)
    assert (scores["acc"], scores["acc_norm"], scores["acc_token"]) == (50, 100, 0)
    assert task.printed(scores)["acc"] == "0.5000 ± 0.5000"


def test_shots_come_before_a_question(tmp_path: Path):
    rows = [{"q": f"Q{n}", "a": "x", "b": "y", "right": n % 2, "id": n} for n in range(3)]
    path = rows_file(tmp_path, rows)
    text = """
family: text_choices
template: {"*": "{q}"}
option_columns: [a, b]
columns: {id: id, answer: right}
shots: 2
data: {eu: {path: rows.jsonl}}
"""
    task = tmp_path / "t.yaml"
    task.write_text(text, encoding="utf-8")
    questions = load_task(str(task)).questions("eu", tmp_path)
    assert questions[0].text == "Q1 y\n\nQ2 x\n\nQ0"  # never the question itself
    assert questions[2].text == "Q0 x\n\nQ1 y\n\nQ2"
    task.write_text(text + "chat: true\ndelimiter: ''\n", encoding="utf-8")
    (first, *_) = load_task(str(task)).questions("eu", tmp_path, limit=1)
    assert [turn.parts[-1] for turn in first.turns] == ["Q1", "y", "Q2", "x", "Q0"]
    assert first.options == ("x", "y")
    path.write_text(path.read_text().split("\n")[0], encoding="utf-8")
    with pytest.raises(ConfigError, match="0 questions to show before another, not 2"):
        load_task(str(task)).questions("eu", tmp_path)


def test_fixed_letters_and_wrong_numbers(tmp_path: Path):
    row = {"flores_passage": "P", "question": "Q", "correct_answer_num": "4", "link": "u"}
    row |= {f"mc_answer{n}": f"a{n}" for n in range(1, 5)}
    (question,) = asked("belebele", tmp_path, row)
    assert question.options == (" A", " B", " C", " D")
    assert question.truth == 3
    with pytest.raises(ConfigError, match="correct_answer_num='5' is not the number of an option"):
        asked("belebele", tmp_path, {**row, "correct_answer_num": "5"})


def test_all_families_are_tasks():
    for name in ("pope", "gqa", "mmbench", "belebele"):
        assert isinstance(load_task(name), TableTask)
