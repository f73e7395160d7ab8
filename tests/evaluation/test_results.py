"""Results folders: tasks asked of a model, numbers with intervals, resumed and used again."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mllm_jax import __main__ as command_line
from mllm_jax.evaluation import asking, significance
from mllm_jax.evaluation.results import page as results_page
from mllm_jax.evaluation.results import tables
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.generation.engine import Answerer
from tests.support import tiny

POPE = """\
from: pope
data: {{eu: {{path: rows.jsonl, images: {images}}}}}
max_new_tokens: 4
"""
CHOICES = """\
family: text_choices
data: {eu: {path: options.jsonl}}
template: {"*": "Galdera: {question}"}
option_columns: [first, second]
"""
TABLES = ("results.json", "results.md", "results.svg", "results.tex")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """tiny's folder, with a task of yes and no and a task of options."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.make_data(folder)
    rows = [
        {
            "question_id": n,
            "question": f"Ba al dago {color} irudian?",
            "answer": answer,
            "image": f"{n // 2}.png",
            "category": "random",
        }
        for n, (color, answer) in enumerate([("gorria", "yes"), ("urdina", "no")] * 4)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    options = [
        {
            "question_id": n,
            "question": "beltza?",
            "first": "bai",
            "second": "ez beltza",
            "answer": str(n % 2),
        }
        for n in range(5)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in options)
    (folder / "options.jsonl").write_text(lines, encoding="utf-8")
    (folder / "own.yaml").write_text(POPE.format(images=folder / "images"), encoding="utf-8")
    (folder / "choices.yaml").write_text(CHOICES, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(trained_run) -> Path:
    return trained_run


def words(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    tasks = (str(data / "own.yaml"), str(data / "choices.yaml"))
    rest = ("--out", str(out), "--language", "eu", "--rows", "2")
    return ["evaluate", str(run), "--task", *tasks, *rest, *more]


@pytest.fixture(scope="module")
def done(run, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    assert command_line.main(words(run, data, out, "--cache", str(out.parent / "cache"))) == 0
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------- the folder


def test_a_folder_holds_answers_numbers_and_settings(done, run, data):
    assert {"answers.jsonl", "settings.json", *TABLES} <= set(contents(done))
    results = json.loads((done / "results.json").read_text())
    assert [(one["task"], one["language"], one["count"]) for one in results] == [
        ("own", "eu", 8),
        ("choices", "eu", 5),
    ]
    assert "f1" in results[0]["metrics"] and "acc_norm" in results[1]["metrics"]
    assert results[0]["correct"]["groups"] == 4
    lines, random = lines_of(done), [f"random/{n}" for n in range(8)]
    assert [line["id"] for line in lines] == [*random, *map(str, range(5))]
    assert lines[0]["prompt"].count("<image>") == 1 and "Ba al dago gorria" in lines[0]["prompt"]
    assert lines[8]["prompt"] == "<|begin_of_text|>Galdera: beltza?"
    settings = json.loads((done / "settings.json").read_text())
    assert settings["model"] == str(run) and len(settings["model_sha256"]) == 64
    assert settings["tasks"]["own"]["settings"]["family"] == "yes_no"
    assert settings["tasks"]["own"]["languages"]["eu"]["count"] == 8
    assert r"\begin{tabular}{lr}" in (done / "results.tex").read_text()
    assert "mean score [95 %]" in (done / "results.md").read_text()


def test_the_page_shows_answers_with_pictures_and_filters(done):
    page = (done / "results.html").read_text("utf-8")
    assert "<script" not in page and "default-src 'none'" in page
    assert set(re.findall("https?://[^\"' ]*", page)) == {"http://www.w3.org/2000/svg"}
    assert page.count("<article") == 13 and "All 13 answers." in page
    assert page.count("<img") == 8 and page.count("class=options") == 5
    for outcome in ("right", "wrong", "unparseable"):
        assert re.search(f"type=radio name=outcome id=outcome-[0-2]>. {outcome}</label>", page)
    assert "body:has(#task-1:checked) .card:not(.task-1){display:none}" in page
    assert page.count("class='card answer task-0 language-0") == 8
    assert (done / "results.svg").read_text("utf-8") in page


def test_a_large_page_says_how_many_it_shows(done, data):
    task = load_task(str(data / "own.yaml"))
    (question, *_), (line, *_) = task.questions("eu", data), lines_of(done)
    asked = [question._replace(images=()) for _ in range(100)]
    whole = tables.result(task, "eu", asked, [{**line, "id": str(n)} for n in range(100)])
    text = results_page.page([whole], json.loads((done / "settings.json").read_text()))
    assert "40 of 100 answers: the first 40 of every task" in text
    assert text.count("<article") == 40


def test_log_likelihoods_are_those_of_the_options_alone(done, run):
    opened = Answerer(run)
    for line in lines_of(done)[8:]:
        found = opened.log_likelihoods(["Galdera: beltza?"] * 2, line["options"])
        assert line["log_likelihoods"] == pytest.approx([one.sum for one in found], abs=1e-4)
        assert line["tokens"] == [one.tokens for one in found]
        assert line["answer"] == "" and "answer_ids" not in line


def test_score_and_compare_read_the_folder(done, data, tmp_path, capsys):
    answers = str(done / "answers.jsonl")
    shutil.copytree(done, tmp_path / "other")
    assert command_line.main(["compare", str(done), str(tmp_path / "other")]) == 0
    (tmp_path / "some.jsonl").write_text(
        "".join(line + "\n" for line in Path(answers).read_text().splitlines()[:8])
    )
    json_file = str(tmp_path / "own.json")
    words = ["score", str(data / "own.yaml"), "--answers", str(tmp_path / "some.jsonl")]
    assert command_line.main([*words, "--json", json_file]) == 0
    first = json.loads((done / "results.json").read_text())[0]
    assert json.loads(Path(json_file).read_text())["metrics"] == first["metrics"]
    capsys.readouterr()


def test_means_have_intervals():
    def line(correct: float, group: str, number: int) -> dict:
        return {"correct": correct, "group": group, "id": str(number)}

    alone = tables.mean([line(n % 2, f"{n}", n) for n in range(10)])
    assert (alone.mean, alone.method, alone.groups) == (50, "wilson", 10)
    assert alone.low == pytest.approx(100 * significance.wilson_interval(5.0, 10).low)
    twice = tables.mean([line(n // 2 % 2, f"{n // 2}", n) for n in range(20)])
    assert (twice.mean, twice.method, twice.groups) == (50, "clustered", 10)
    assert twice.low == pytest.approx(50 - 100 * 1.96 * np.sqrt(0.25 / 10), abs=0.01)
    fractions = tables.mean([line(0.3, "", 1), line(0.6, "", 2), line(0.9, "", 3)])
    assert fractions.method == "normal" and fractions.low < 60 < fractions.high
    same = tables.mean([line(0, f"{n // 2}", n) for n in range(20)])
    assert same.method == "wilson" and abs(same.low) < 1e-9 and 20 < same.high < 30
    single = tables.mean([line(0.7, "", 1)])
    assert single.low < 20 and single.high > 95, "one fraction says little"


# --------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("batches", [1, 4, 6])
def test_an_interrupted_evaluation_ends_in_the_same_bytes(
    batches, done, run, data, tmp_path, monkeypatch, capsys
):
    """Ended after some batches, in the middle of writing a line."""
    out, count = tmp_path / "out", 0

    def some(*arguments):
        nonlocal count
        for lines in ask(*arguments):
            if count == batches:
                raise KeyboardInterrupt
            count += 1
            yield lines

    ask = asking.ask
    monkeypatch.setattr("mllm_jax.evaluation.runner.ask", some)
    cache = ("--cache", str(tmp_path / "cache"))
    assert command_line.main(words(run, data, out, *cache)) == 130
    partial = out / "answers.partial.jsonl"
    whole = partial.read_bytes()
    assert whole.count(b"\n") and not (out / "results.json").exists()
    partial.write_bytes(whole[:-9])
    monkeypatch.setattr("mllm_jax.evaluation.runner.ask", ask)
    capsys.readouterr()
    assert command_line.main(words(run, data, out, *cache)) == 2
    assert "continue with --resume" in capsys.readouterr().err
    assert command_line.main(words(run, data, out, "--resume", *cache)) == 0
    assert contents(out) == contents(done)


@pytest.mark.slow
def test_killed_at_three_places_and_resumed(done, run, data, tmp_path):
    """SIGKILL after different numbers of answers; only the last start ends by itself."""
    out = tmp_path / "out"
    arguments = words(run, data, out, "--resume", "--cache", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "mllm_jax", *arguments]
    partial = out / "answers.partial.jsonl"
    for least in (1, 5, 9):
        process = subprocess.Popen(command)
        while process.poll() is None and not (
            partial.is_file() and partial.read_bytes().count(b"\n") >= least
        ):
            time.sleep(0.005)
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    assert contents(out) == contents(done)


@pytest.mark.slow
def test_two_processes_share_the_batches(done, run, data, tmp_path):
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process")
    command = [sys.executable, "-m", "mllm_jax", *words(run, data, out, "--cache", cache), *place]
    started = [subprocess.Popen([*command, str(number)]) for number in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert contents(out) == contents(done)


def test_other_settings_are_refused(done, run, data, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    assert command_line.main(words(run, data, out, "--resume")) == 0  # finished already
    assert "finished already" in capsys.readouterr().out
    assert contents(out) == contents(done)
    assert command_line.main(words(run, data, out, "--resume", "--limit", "3")) == 2
    message = capsys.readouterr().err
    assert "was begun with tasks.choices.languages.eu.count=5, not 3" in message
    assert message.count("\n") == 1 and contents(out) == contents(done)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("precious")
    assert command_line.main(words(run, data, tmp_path / "mine", "--resume")) == 2
    assert "not a results folder" in capsys.readouterr().err


def test_what_was_measured_is_not_asked_again(done, run, data, tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("asked")

    cache = ("--cache", str(done.parent / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "losses", never)
        patch.setattr(Answerer, "answer", never)
        assert command_line.main(words(run, data, tmp_path / "out", *cache)) == 0
        with pytest.raises(AssertionError, match="asked"):
            command_line.main(words(run, data, tmp_path / "again", *cache, "--again"))
    assert "own, eu: 8 answers of this model are measured already" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(done)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "give --task NAME or --data FILE"),
        (("--task", "pop"), "did you mean pope?"),
        (("--task", "pope", "pope"), "task pope: is there twice"),
        (("--task", "pope", "gqa", "--data", "rows.jsonl"), "--data: needs one --task, got 2"),
        (("--task", "pope", "--data", "rows.jsonl"), "--data FILE needs --language xx"),
        (("--task", "pope", "--images", "."), "--images: needs --data FILE"),
        (("--task", "pope", "--language", "xx"), "no published data in 'xx'"),
    ],
)
def test_refused_in_one_line(more, message, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert command_line.main(["evaluate", str(run), "--out", str(out), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()
