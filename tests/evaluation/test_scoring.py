"""Scores from stored answers: published values on published files, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.__main__ import main
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.records.parse import user_turn
from mllm_jax.evaluation import scoring
from mllm_jax.evaluation.answers import make_line, write_line
from mllm_jax.evaluation.extras import Extras
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question
from tests.evaluation.test_published import SAMPLE, file
from tests.support.task_data import rows_file

LABELS = ("yes", "no", "yes", "no")


def pope_files(folder: Path) -> tuple[Path, list[Path]]:
    """Answers of two categories, and their questions with labels."""
    truths, answers = [], []
    for category in ("random", "popular"):
        rows = [
            {"question_id": n, "image": "a.jpg", "text": f"Is it {n}?", "label": label}
            for n, label in enumerate(LABELS)
        ]
        truths.append(file(folder, tuple(rows), f"coco_pope_{category}.json"))
        answers += [
            {
                "question_id": n,
                "category": category,
                "image": "a.jpg",
                "question": f"Is it {n}?\nAnswer the question using a single word or phrase.",
                "prediction": "Yes" if category == "random" else label,
            }
            for n, label in enumerate(LABELS)
        ]
    return file(folder, tuple(answers), "answers.jsonl"), truths


def test_pope_with_its_categories(tmp_path: Path):
    answers, truths = pope_files(tmp_path)
    _, (score,) = scoring.score("pope", answers, truths)
    assert (score.language, score.count) == ("en", 8)
    assert score.metrics["f1_popular"] == 100
    assert score.metrics["f1_random"] == pytest.approx(200 / 3)
    assert score.metrics["accuracy"] == 75


def test_one_category_of_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers, truths = pope_files(tmp_path)
    _, (score,) = scoring.score("pope", answers, truths[:1])
    assert (score.count, score.metrics["accuracy"]) == (4, 50)
    said = capsys.readouterr().out
    assert "answers of other categories than the truth's are left out: popular (4)" in said


def test_ids_that_differ_are_matched_by_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    answers, truths = pope_files(tmp_path)
    rows = [json.loads(line) for line in truths[1].read_text().splitlines()]
    for row in rows:
        row["question_id"] += 100
    file(tmp_path, tuple(reversed(rows)), truths[1].name)
    _, (score,) = scoring.score("pope", answers, truths)
    assert score.metrics["f1_popular"] == 100
    assert "matched by image and question" in capsys.readouterr().out


def test_a_category_that_one_side_names(tmp_path: Path):
    rows = [{"question_id": n, "text": t, "label": t} for n, t in enumerate(LABELS)]
    truth = file(tmp_path, tuple(rows), "renamed.json")  # POPE's name would say the category
    answers = [{"question_id": n, "text": t, "category": "random"} for n, t in enumerate(LABELS)]
    _, (score,) = scoring.score("pope", file(tmp_path, tuple(answers)), [truth])
    assert (score.count, score.metrics["accuracy"]) == (4, 100)
    twice = [*answers, answers[0] | {"category": "popular"}]
    with pytest.raises(ConfigError, match="several answers have one id, and the truth names no"):
        scoring.score("pope", file(tmp_path, tuple(twice)), [truth])
    rows = [{"question_id": n, "question": "?", "answer": t} for n, t in enumerate(LABELS)]
    truth = file(tmp_path, tuple({**row, "category": "random"} for row in rows), "rows.jsonl")
    plain = tuple({"question_id": n, "text": t} for n, t in enumerate(LABELS))
    _, (score,) = scoring.score("pope", file(tmp_path, plain), [truth])
    assert (score.count, score.metrics["accuracy"]) == (4, 100)


def test_answers_without_ids_are_matched_by_order(tmp_path: Path):
    _, truths = pope_files(tmp_path)
    rows = [{"question": f"Is it {n}?", "answer": label} for n, label in enumerate(LABELS)]
    _, (score,) = scoring.score("pope", file(tmp_path, tuple(rows)), truths[:1])
    assert score.metrics["accuracy"] == 100
    with pytest.raises(ConfigError, match=r"answers and truth differ: .* \(as id 'line 1'\)"):
        scoring.score("pope", file(tmp_path, tuple(reversed(rows))), truths[:1])


def test_answers_that_do_not_fit_the_truth(tmp_path: Path):
    truth = file(tmp_path, ({"question_id": 1, "text": "a", "label": "yes"},), "t.json")
    rows = {"question_id": 2, "text": "Yes"}, {"question_id": 3, "text": "Yes"}
    with pytest.raises(ConfigError) as error:
        scoring.score("pope", file(tmp_path, rows), [truth])
    assert "2 answers have no question (as id '2') and 1 of 1 questions no answer (as id '1')" in (
        str(error.value)
    )
    double = {"question_id": 1, "text": "Yes"}, {"question_id": 1, "text": "No"}
    with pytest.raises(ConfigError, match="id '1' is given 2 times; keep one"):
        scoring.score("pope", file(tmp_path, double), [truth])


def test_several_truths_without_categories(tmp_path: Path):
    _, truths = pope_files(tmp_path)
    rows = tuple({"question_id": n, "text": "Yes"} for n in range(4))
    answers = file(tmp_path, rows)
    with pytest.raises(ConfigError, match="give one --truth file at a time"):
        scoring.score("pope", answers, truths)
    _, (score,) = scoring.score("pope", answers, truths[:1])
    assert score.count == 4


def test_scienceqa_as_llava_publishes_it(tmp_path: Path):
    def record(key: str, image: bool, letter: str) -> dict[str, Any]:
        text = "Context: A. B.\nWhich?\nA. a cat\nB. a dog"
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": letter}]
        return {"id": key, "conversations": turns} | ({"image": "a.png"} if image else {})

    records = [record("1", True, "B"), record("2", False, "A"), record("3", False, "A")]
    truth = file(tmp_path, records, "t.json")
    answers = file(tmp_path, {"1": "B. a dog", "2": "B", "3": "C"})
    task, (score,) = scoring.score("scienceqa", answers, [truth])
    assert score.metrics["accuracy"] == pytest.approx(100 / 3)
    assert score.metrics["accuracy_image"] == 100
    assert score.metrics["unparseable"] == pytest.approx(100 / 3)  # C is not an option
    assert "33.33" in scoring.table(task, [score])
    with pytest.raises(ConfigError, match="truth of 1: 'D' is not the letter of an option"):
        scoring.score("scienceqa", answers, [file(tmp_path, [record("1", True, "D")], "t.json")])


def test_samples_of_lm_eval_hold_their_truth(tmp_path: Path):
    other = {**SAMPLE, "doc_id": 4, "target": "0"}
    task, (score,) = scoring.score("xstorycloze_eu", file(tmp_path, (SAMPLE, other)))
    assert (score.language, score.metrics["acc"]) == ("eu", 50)
    assert "acc_token" not in score.metrics  # the samples do not count tokens
    assert "0.5000 ± 0.5000" in scoring.table(task, [score])


def test_references_of_captions(tmp_path: Path):
    answers = file(tmp_path, "a black cat sits\nthe dog\n", "hyp.txt")
    truths = [
        file(tmp_path, "a black cat sits\na dog\n", "ref1.txt"),
        file(tmp_path, "a cat\nthe dog\n", "ref2.txt"),
    ]
    task, (score,) = scoring.score("captions", answers, truths, "eu")
    assert score.metrics["Bleu_1"] == pytest.approx(1)
    assert "1.000000" in scoring.table(task, [score])
    short = file(tmp_path, "a dog\n", "ref3.txt")
    with pytest.raises(ConfigError, match="1 lines, and the references before it have 2"):
        scoring.score("captions", answers, [truths[0], short], "eu")


def test_the_language_of_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One caption in Basque, one in English, two too short; the references are all in Basque."""
    basque = "txakur beltz handi bat belardian korrika dabil haurrekin"
    english = "a large black dog is running on the grass with the children"
    answers = file(tmp_path, f"{basque}\n{english}\nbai\nez\n", "hyp.txt")
    truth = file(tmp_path, f"{basque}\n" * 4, "ref.txt")
    words = ["score", "captions", "--answers", str(answers), "--truth", str(truth)]
    words += ["--language", "eu", "--fidelity", "eu", "en"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    metrics = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert (metrics["language_fidelity"], metrics["undecided"]) == (50, 50)
    assert (metrics["identifier_accuracy"], metrics["identifier_undecided"]) == (100, 0)
    out = capsys.readouterr().out
    assert "language identified by py3langid" in out and "language_fidelity" in out
    for more, message in (
        (["--identifier", str(tmp_path / "none.bin")], "none.bin: no such file"),
        (["--fidelity", "eu"], "needs two languages or more"),
        (["--fidelity", "es", "en"], "language 'eu' is not among those"),
        (["--fidelity", "eu", "qq"], "Unknown language code"),
    ):
        assert main([*words, *more, "--json", str(tmp_path / "none.json")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "none.json").exists()


def test_chrf_and_bleu_with_their_signatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers = file(tmp_path, "Txakur beltz bat belardian.\n", "hyp.txt")
    truth = file(tmp_path, "Txakur beltz bat belardian korrika.\n", "ref.txt")
    out = tmp_path / "out.json"
    words = ["score", "captions", "--answers", str(answers), "--truth", str(truth), "--chrf"]
    assert main([*words, "--language", "eu", "--json", str(out)]) == 0
    tree = json.loads(out.read_text())
    assert tree["metrics"]["chrf"] == pytest.approx(76.1154, abs=5e-5)
    assert tree["metrics"]["chrf++"] == pytest.approx(75.6891, abs=5e-5)
    assert tree["signatures"].keys() == {"chrf", "chrf++", "bleu"}
    assert f"chrf: {tree['signatures']['chrf']}\n" in capsys.readouterr().out


def test_no_chrf_of_letters(tmp_path: Path):
    samples = file(tmp_path, (SAMPLE,), "samples.jsonl")
    with pytest.raises(ConfigError, match="chrf: task xstorycloze asks for no text"):
        scoring.score("xstorycloze", samples, language="eu", extras=Extras(chrf=True))


def test_no_language_without_texts(tmp_path: Path):
    samples = file(tmp_path, (SAMPLE,), "samples.jsonl")
    with pytest.raises(ConfigError, match="task xstorycloze asks for no text whose language"):
        scoring.score("xstorycloze", samples, language="eu", extras=Extras(("eu", "en")))
    with pytest.raises(ConfigError, match="--identifier is used with --fidelity"):
        Extras(identifier=tmp_path / "lid.bin")


def our_answers(
    folder: Path, name: str = "pope", languages: tuple[str, ...] = ("en", "eu")
) -> Path:
    """An answers.jsonl of ours; Basque is half right."""
    task, lines = load_task(name), []
    for language in languages:
        rows = [
            {"question_id": n, "question": "?", "image": "a.png", "answer": label}
            for n, label in enumerate(LABELS)
        ]
        data = rows_file(folder, rows)
        for question in task.with_data(language, data).questions(language, folder):
            answer = Answer({"en": question.truth, "eu": "Ez"}[language])
            judged = task.judge(question, answer)._replace(parsed="stale", correct=0.0)
            lines.append(make_line("pope", question, answer, judged))
    path = folder / "answers.jsonl"
    path.write_text("".join(map(write_line, lines)), encoding="utf-8")
    return path


def test_our_answers_are_judged_again(tmp_path: Path):
    path = our_answers(tmp_path)
    _, scores = scoring.score("pope", path)
    assert [(one.language, one.metrics["accuracy"]) for one in scores] == [("en", 100), ("eu", 50)]
    _, (score,) = scoring.score("pope_ndino", path, language="eu")
    assert (score.task, score.metrics["accuracy"]) == ("pope_ndino", 50)
    with pytest.raises(ConfigError, match="no answers in 'it'; there are en, eu"):
        scoring.score("pope", path, language="it")
    with pytest.raises(
        ConfigError, match=r"no answers of task gqa; there are pope \(4\); name theirs"
    ):
        scoring.score("gqa", our_answers(tmp_path, languages=("en",)))


def test_ids_of_a_task_begin_with_the_category(tmp_path: Path):
    rows = [
        {"question_id": 1, "question": "?", "image": "a.png", "answer": "yes", "category": name}
        for name in ("random", "popular")
    ]
    truth = rows_file(tmp_path, rows, "truth.jsonl")
    answers = tuple(
        {"question_id": 1, "category": name, "prediction": "Yes"} for name in ("popular", "random")
    )
    _, (score,) = scoring.score("pope", file(tmp_path, answers), [truth])
    assert (score.count, score.metrics["accuracy_popular"]) == (2, 100)


def test_truths_of_another_kind_are_named(tmp_path: Path):
    path = our_answers(tmp_path, languages=("en",))
    lines = [json.loads(line) | {"task": "mmstar"} for line in path.read_text().splitlines()]
    path.write_text("".join(map(write_line, lines)), encoding="utf-8")
    with pytest.raises(ConfigError, match="truth of 0: 'yes' is not the letter of an option"):
        scoring.score("mmstar", path)
    with pytest.raises(ConfigError, match=r"a\.json: no answers"):
        scoring.score("pope", file(tmp_path, {}), pope_files(tmp_path)[1])
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    truth = file(tmp_path, [{"id": "1", "conversations": turns}], "t.json")
    for name, metric in (("mmmu", "accuracy"), ("gqa", "exact_match"), ("captions", "ROUGE_L")):
        _, (score,) = scoring.score(name, file(tmp_path, {"1": "4"}), [truth])
        assert score.metrics[metric] in (1, 100)
    with pytest.raises(ConfigError, match="truth of 1: '4' is not the letter of an option"):
        scoring.score("seedbench", file(tmp_path, {"1": "4"}), [truth])
    with pytest.raises(ConfigError, match="label '4' is neither yes nor no"):
        scoring.score("mme", file(tmp_path, {"1": "4"}), [truth])
    with pytest.raises(ConfigError, match="no options are stored; task belebele needs"):
        scoring.score("belebele", file(tmp_path, {"1": "4"}), [truth])


def test_a_file_of_questions_says_what_ids_stand_for(tmp_path: Path):
    _, truths = pope_files(tmp_path)
    questions, answers = [], []
    for category in ("popular", "random"):
        for n, label in enumerate(LABELS):
            row = {"question_id": len(questions), "image": "a.jpg", "category": category}
            questions.append({**row, "text": f"Is it {n}?\nAnswer in a word."})
            answers.append({"question_id": len(answers), "prompt": "?", "text": label})
    asked = file(tmp_path, tuple(questions), "llava_pope_test.jsonl")
    path = file(tmp_path, tuple(answers))
    _, (score,) = scoring.score("pope", path, [asked, *truths])
    assert (score.count, score.metrics["accuracy"]) == (8, 100)


def test_truths_as_the_benchmarks_publish_them(tmp_path: Path):
    gqa = file(tmp_path, {"7": {"question": "?", "answer": "red", "imageId": "n"}}, "t.json")
    answers = file(tmp_path, [{"questionId": "7", "prediction": "Red."}])
    _, (score,) = scoring.score("gqa", answers, [gqa])
    assert score.metrics["exact_match"] == 100
    row = {"question_id": "s", "question": "?", "answer": "B", "data_type": "image"}
    row |= {f"choice_{letter}": letter for letter in "abcd"} | {"data_id": "x.png"}
    seed = file(tmp_path, {"question_type": {}, "questions": [row]}, "t.json")
    _, (score,) = scoring.score("seedbench", file(tmp_path, {"s": "B"}), [seed])
    assert score.metrics["accuracy"] == 100
    row = {"question_id": "q", "question": "?", "choices": ["x", "y"], "correct_choice_idx": 1}
    rows = [{**row, "difficult_direct_answer": False}]
    rows.append({**row, "question_id": "r", "difficult_direct_answer": True})
    aokvqa = file(tmp_path, rows, "t.json")
    _, (score,) = scoring.score("aokvqa", file(tmp_path, {"q": "y", "r": "x"}), [aokvqa])
    assert (score.count, score.metrics["accuracy"]) == (1, 100)
    bad, answers = file(tmp_path, {"questions": [rows[0], 3]}, "t.json"), file(tmp_path, {"q": "y"})
    with pytest.raises(ConfigError, match=r"questions\[1\]: not an object"):
        scoring.score("aokvqa", answers, [bad])


def test_answers_of_several_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = our_answers(tmp_path, languages=("en",))
    other = json.loads(path.read_text().splitlines()[0]) | {"task": "gqa"}
    path.write_text(path.read_text() + write_line(other), encoding="utf-8")
    _, (score,) = scoring.score("pope", path)
    assert score.count == 4
    assert "answers of other tasks are left out: gqa (1)" in capsys.readouterr().out


def test_a_truth_in_the_place_of_the_stored_one(tmp_path: Path):
    path = our_answers(tmp_path, languages=("en",))
    rows = [
        {"question_id": n, "question": "?", "image": "a.png", "answer": "yes"} for n in range(4)
    ]
    truth = rows_file(tmp_path, rows, "other.jsonl")
    _, (score,) = scoring.score("pope", path, [truth])
    assert score.metrics["accuracy"] == 50
    odd = file(tmp_path, ({"a": 1},), "odd.jsonl")
    with pytest.raises(ConfigError, match="known layouts of truth: POPE's") as error:
        scoring.score("pope", path, [odd])
    assert "JSONL of {a}; known" in str(error.value)
    assert "no column 'answer'" in str(error.value)


def test_a_language_without_words_is_refused(tmp_path: Path):
    answers, truths = pope_files(tmp_path)
    with pytest.raises(ConfigError, match="language 'xx' has no table of words"):
        scoring.score("pope", answers, truths, language="xx")


def test_no_truth_at_all(tmp_path: Path):
    answers, _ = pope_files(tmp_path)
    with pytest.raises(ConfigError, match="holds no truth: give --truth FILE"):
        scoring.score("pope", answers, root=tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers, truths = pope_files(tmp_path)
    words = ["score", "pope", "--answers", str(answers), "--truth", *map(str, truths)]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    tree = json.loads((tmp_path / "out.json").read_text())
    assert tree.keys() == {"task", "language", "count", "metrics"}
    assert (tree["task"], tree["count"], tree["metrics"]["accuracy"]) == ("pope", 8, 75)
    assert "| accuracy" in capsys.readouterr().out
    ours, two = our_answers(tmp_path), tmp_path / "two.json"
    assert main(["score", "pope", "--answers", str(ours), "--json", str(two)]) == 0
    assert [one["language"] for one in json.loads(two.read_text())] == ["en", "eu"]
    for bad in (["score", "popr", "--answers", str(answers)], [*words, "--language", "xx"]):
        assert main([*bad, "--json", str(tmp_path / "none.json")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none.json").exists()


# ---------------------------------------------------------------------------------- published files


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["score", *words]) == 0
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


@pytest.mark.realdata
def test_pope_of_llava(shared: Path, capsys: pytest.CaptureFixture[str]):
    folder = shared / "realdata/metrics/pope"
    words = ["pope", "--answers", str(folder / "llava-v1.5-13b.jsonl"), "--truth"]
    files = [str(one) for one in sorted(folder.glob("coco_pope_*.json"))]
    table = printed([*words, *files], capsys)
    assert [table[f"f1_{name}"] for name in ("random", "popular", "adversarial")] == [
        "87.14",
        "86.25",
        "84.46",
    ]
    assert table["f1_mean"] == "85.95"  # published as 85.9
    assert printed([*words, files[2]], capsys)["f1"] == "87.14"


@pytest.mark.realdata
def test_scienceqa_of_llava(shared: Path, capsys: pytest.CaptureFixture[str]):
    folder = shared / "realdata/metrics/scienceqa"
    words = ["scienceqa", "--answers", str(folder / "llava-v1.5-13b_outputs.json")]
    table = printed([*words, "--truth", str(folder / "llava_test_CQM-A.json")], capsys)
    assert (table["accuracy_image"], table["accuracy"]) == ("71.64", "74.39")


@pytest.mark.realdata
def test_captions_of_nlg_eval(shared: Path, capsys: pytest.CaptureFixture[str]):
    folder = shared / "realdata/metrics/caption_nlgeval"
    files = [str(folder / name) for name in ("hyp.txt", "ref1.txt", "ref2.txt")]
    table = printed(["captions", "--answers", files[0], "--truth", *files[1:]], capsys)
    expected = json.loads((folder / "expected.json").read_text())["corpus"]
    del expected["METEOR"]  # a Java program; see docs/metrics.md
    assert {name: float(table[name]) for name in expected} == expected


@pytest.mark.realdata
def test_xstorycloze_of_llama(shared: Path, capsys: pytest.CaptureFixture[str]):
    (samples,) = (shared / "realdata/metrics/xstorycloze_eu").glob("*samples*")
    table = printed(["xstorycloze", "--language", "eu", "--answers", str(samples)], capsys)
    assert table["acc"] == "0.5546 ± 0.0128"


def ours(folder: Path, task: str, *changes: dict[str, Any]) -> Path:
    """An answers.jsonl with a line for each of `changes`."""
    question = Question("0", "en", (user_turn("?"),), (), "yes")
    line = make_line(task, question, Answer("yes"), Judged("yes", 1.0, {}))
    return file(folder, tuple({**line, "id": str(n), **one} for n, one in enumerate(changes)))


CHOICE = {"options": [" a", " b"], "log_likelihoods": [-1.0, -2.0], "tokens": [1, 1], "truth": 0}
ROTATED = {"group": "7", "truth": {"letter": "A", "options": ["x", "y"]}}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("pope", {"truth": "maybe"}, "label 'maybe' is neither yes nor no in English"),
        ("pope", {"truth": None}, "label 'None' is neither yes nor no"),
        ("pope", {"truth": {"a": 1}}, "is neither yes nor no"),
        ("xstorycloze", CHOICE | {"truth": "0"}, "truth '0' is not the number of one of 2 options"),
        ("xstorycloze", CHOICE | {"truth": 2}, "truth 2 is not the number of one of 2 options"),
        ("xstorycloze", CHOICE | {"truth": True}, "truth True is not the number"),
        ("vqav2", {"truth": "yes"}, "several annotators, got 1"),
        ("mmbench", ROTATED | {"truth": {"letter": "Q", "options": ["x"]}}, "names none of its 1"),
        ("captions", {"truth": []}, "no captions of people"),
        ("gqa", {"truth": 5}, "truth 5 is not one of task gqa"),
    ],
)
def test_stored_truths_are_those_of_the_task(
    tmp_path: Path, task: str, changes: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as error:
        scoring.score(task, ours(tmp_path, task, changes))
    assert message in str(error.value)
    assert "answer '0'" in str(error.value)


def test_a_caption_of_one_reference(tmp_path: Path):
    path = ours(tmp_path, "captions", {"truth": "a dog", "answer": "a dog"})
    _, (score,) = scoring.score("captions", path)
    assert score.metrics["ROUGE_L"] == 1


def test_token_counts_may_be_missing(tmp_path: Path):
    path = ours(tmp_path, "xstorycloze", CHOICE, CHOICE | {"tokens": [], "truth": 1})
    _, (score,) = scoring.score("xstorycloze", path)
    assert score.metrics["acc"] == 50
    assert "acc_token" not in score.metrics


def test_circular_accuracy_needs_every_rotation(tmp_path: Path):
    path = ours(tmp_path, "mmbench", ROTATED | {"answer": "A"})
    with pytest.raises(ConfigError, match="question '7': 1 of 2 rotations are answered"):
        scoring.score("mmbench", path)


def test_answers_in_a_list_are_one_to_a_question(tmp_path: Path):
    path = file(tmp_path, [json.loads(ours(tmp_path, "pope", {}).read_text())] * 2)
    with pytest.raises(ConfigError, match=r"\[1\]: id '0' was answered in .*\[0\] already"):
        scoring.score("pope", path)


def test_a_task_for_every_language_defaults_to_english(tmp_path: Path):
    task = tmp_path / "t.yaml"
    task.write_text('family: yes_no\npost_prompt: {"*": "?"}\n')
    assert scoring.default_language(load_task(str(task))) == "en"
