"""`mllm-jax evaluate` on eight devices: the answers and numbers of one device; killed, resumed."""

import json
from pathlib import Path

import jax
import pytest

from mllm_jax import __main__ as command_line
from mllm_jax.evaluation import asking
from mllm_jax.training.loop import train
from tests.support import tiny

CHOICES = """\
family: text_choices
data: {eu: {path: options.jsonl}}
template: {"*": "Galdera: {question}"}
option_columns: [first, second]
"""
# the first question that is asked is text alone; one picture, two and none in one batch
ASKED = [
    ([], "gorria eta berdea?", "gorria"),
    (["0.png"], "<image>\nZein kolore?", "gorria"),
    (["1.png", "2.png"], "<image>\n<image>\nZeintzuk?", "urdina"),
    (["3.png"], "<image>\nZer da hau, eta zein kolore ditu?", "zuria"),
    ([], "beltza?", "bai"),
    (["4.png"], "<image>\nEta hau?", "horia"),
    (["5.png", "6.png"], "<image>\n<image>\nEta hauek?", "horia zuria"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """tiny's folder with questions about pictures and text, and a task of options."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.make_data(folder)
    (folder / "asked.json").write_text(json.dumps(tiny.asked(ASKED)), encoding="utf-8")
    options = [
        {"question_id": n, "question": "beltza? " * (n + 1), "first": "bai", "second": "ez beltza",
         "answer": str(n % 2)}
        for n in range(3)
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in options)
    (folder / "options.jsonl").write_text(lines, encoding="utf-8")
    (folder / "choices.yaml").write_text(CHOICES, encoding="utf-8")
    free = f"data: {{eu: {{path: asked.json, images: {folder}/images}}}}"
    (folder / "asked.yaml").write_text(f"from: free\nmax_new_tokens: 5\n{free}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    config = tiny.config(
        data, tmp_path_factory.mktemp("run") / "run", train={"steps": 2, "save_every": 2}
    )
    return train(config, devices=jax.devices()[:1])


def evaluate(run: Path, data: Path, out: Path, *more: str) -> int:
    tasks = (str(data / "choices.yaml"), str(data / "asked.yaml"))
    words = ["evaluate", str(run), "--task", *tasks, "--language", "eu", "--out", str(out)]
    return command_line.main([*words, "--rows", "3", "--cache", str(out.parent / "cache"), *more])


@pytest.fixture(scope="module")
def single(run, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    assert evaluate(run, data, out, "--devices", "1") == 0
    return out


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--fsdp", "2", "--tensor", "2"), marks=pytest.mark.slow)]
)
def test_eight_devices_equal_one(more, single, run, data, tmp_path):
    out = tmp_path / "out"
    assert evaluate(run, data, out, *more) == 0
    ours, theirs = lines_of(out), lines_of(single)
    assert len(ours) == len(theirs) == 10
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("log_likelihoods") == pytest.approx(other.pop("log_likelihoods"), abs=1e-4)
        assert one.pop("numbers") == pytest.approx(other.pop("numbers"), abs=1e-4)
        assert one == other
    results = [json.loads((folder / "results.json").read_text()) for folder in (out, single)]
    for one, other in zip(*results, strict=True):
        assert one.pop("metrics") == pytest.approx(other.pop("metrics"), rel=1e-4)
        assert one == other
    settings = json.loads((out / "settings.json").read_text())
    assert settings["mesh"]["data"] * settings["mesh"]["fsdp"] * settings["mesh"]["tensor"] == 8
    assert "mesh" not in json.loads((single / "settings.json").read_text())


def test_resumed_on_eight_devices_in_the_same_bytes(run, data, tmp_path, monkeypatch, capsys):
    """Interrupted after two batches; other devices are refused."""
    assert evaluate(run, data, tmp_path / "whole") == 0
    ask, count = asking.ask, 0

    def some(*arguments):
        nonlocal count
        for lines in ask(*arguments):
            if count == 2:
                raise KeyboardInterrupt
            count += 1
            yield lines

    out = tmp_path / "b" / "out"
    with monkeypatch.context() as patch:
        patch.setattr("mllm_jax.evaluation.runner.ask", some)
        assert evaluate(run, data, out) == 130
    capsys.readouterr()
    assert evaluate(run, data, out, "--resume", "--devices", "1") == 2
    assert "was begun with mesh.data=8" in capsys.readouterr().err
    assert evaluate(run, data, out, "--resume") == 0
    found, expected = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
        for folder in (out, tmp_path / "whole")
    )
    assert found == expected
