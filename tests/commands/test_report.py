"""`mllm-jax report`: folders of runs and recipes as pages; what is missing is said in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mllm_jax.__main__ import main
from mllm_jax.commands.report import answers, pages
from mllm_jax.commands.report.stages import read_stage, stream_targets
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.data.images import decode
from mllm_jax.report import stage_sections
from tests.support import valid_config

STREAMS = {
    "captions": {"used": 100, "tokens": 3000, "images": 100, "tokens_per_word": {"eu": 1.5}},
    "words": {"used": 50, "tokens": 500, "images": 0, "tokens_per_word": {"en": 1.2}},
}


def make_run(folder: Path, steps: int = 20, streams: Any = None, *changes: tuple[str, Any]) -> Path:
    """A run folder as `train` leaves it, without weights."""
    (folder / "model").mkdir(parents=True)
    tree = valid_config.tree(("data.image_fit", "pad"), *changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    lines = []
    for step in range(steps):
        line: dict[str, Any] = {"step": step, "loss": 2.0 / (step + 1), "step_seconds": 0.5}
        line |= {"loss/language/eu": 2.5 / (step + 1), "real_tokens_per_second": 900.0}
        line |= {"share_records/stream/captions": 0.8, "total_records/stream/captions": 8 * step}
        line |= {"heldout/loss": 2.0, "heldout/loss/language/eu": 2.2} if step % 10 == 9 else {}
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "data.json").write_text(json.dumps({"order": 2, "streams": streams or STREAMS}))
    entry = {"step": 0, "steps": 40, "streams": {"captions": {"examples": 100, "digest": "ab"}}}
    (folder / "inputs.json").write_text(json.dumps({"inputs": [entry]}))
    machine = {"devices": "4 x chip", "processes": 2, "mesh": {"data": 4, "fsdp": 1}}
    (folder / "machine.json").write_text(json.dumps(machine | {"versions": {"jax": "0.9"}}))
    return folder


def make_pictures(folder: Path) -> dict[str, Path]:
    """Transparent, tall, and lying on its side with a note about that."""
    folder.mkdir(parents=True)
    files = {name: folder / name for name in ("clear.png", "tall.png", "turned.jpg")}
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (10, 10, 30, 30))
    clear.save(files["clear.png"])
    Image.new("RGB", (20, 900), (0, 90, 0)).save(files["tall.png"])
    turned = Image.new("RGB", (60, 40), (0, 0, 250))
    turned.paste((250, 250, 0), (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(files["turned.jpg"], exif=exif)
    return files


def make_answers(folder: Path, images: list[Path], truths: list[str]) -> None:
    (folder / "evaluation").mkdir()
    lines = [
        {
            "id": f"colour-eu-{n:06d}",
            "language": "eu",
            "images": [str(images[n % len(images)])] if images else [],
            "question": "<image>\nZein kolore? <script>alert(1)</script>",
            "answer": "gorria",
            "truth": truth,
            "correct": truth == "gorria",
        }
        for n, truth in enumerate(truths)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "evaluation" / "answers.jsonl").write_text(text)
    scores = {"languages": {"eu": {"loss": 0.5, "perplexity": 1.65}}}
    (folder / "evaluation" / "scores.json").write_text(json.dumps(scores))


def config_of(run: Path) -> Config:
    return loading.load(Config, run / "config.yaml")


def test_a_run_that_is_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run")
    (run / "samples").mkdir()
    for step in (5, 10, 100):
        (run / "samples" / f"step-{step:06d}.txt").write_text(f"eu: <b>bat</b> {step}")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # being written
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == (
        "report: no evaluation yet, so no scores and answers\n"
        f"report of {run}: {run / 'report.html'}\n"
    )
    text = (run / "report.html").read_text(encoding="utf-8")
    for words in (
        "20 of 40",
        "held out",
        "/run</h1>",
        "900 tokens/s",
        "4 x chip, 2 processes",
        "data 4, fsdp 1",
        "0.9<",
        "10\xa0s in steps",
    ):
        assert words in text, words
    assert "&lt;b&gt;bat&lt;/b&gt; 100" in text
    assert text.index("step 100") < text.index("step 10<"), "the latest first"
    assert "83.3" in text and "16.7" in text, "targets: weights 1 and 0.2"


def test_a_recipe_between_its_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    make_run(out / "align")
    make_run(out / "instruct", steps=0)
    modules = [{"module": name, "before": "0a", "after": "1b"} for name in ("vision", "language")]
    stage = {"name": "align", "run": "align", "seconds": 60.0, "modules": modules}
    summary = {"stages": [stage], "seconds": {"data": 2.0}, "versions": {"jax": "0.1"}}
    (out / "summary.json").write_text(json.dumps(summary | {"device": "2 x chip"}))
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert "report: instruct: no steps yet\n" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("2 x chip", "instruct: no steps yet", "0a<br>1b", "1\xa0min\xa02\xa0s"):
        assert words in text, words
    assert not (out / "report.html").exists()


def make_tree(out: Path) -> None:
    """Two finished variants and one whose stage is not there, as `recipe` leaves them."""
    rate = ("optimizer.parts", {"eyes": {"match": "vision/.*", "learning_rate": 2e-6},
                                "rest": {"match": "(connector|language)/.*"}})  # fmt: skip
    for name in ("mlp", "it", "pt"):
        make_run(out / name, 20, None, rate)
    rows = [
        {"name": name, "from": start, "run": name, "seconds": 60.0, "modules": []}
        for name, start in (("mlp", None), ("pt", "mlp"), ("it", "mlp"))
    ]
    variants = {"IT": "it", "PT": "pt", "LONG": "long"}
    summary = {"stages": rows, "seconds": {"evaluation IT": 2.0}, "variants": variants}
    (out / "summary.json").write_text(json.dumps(summary))
    for name, truths in (("IT", ["gorria", "berdea"]), ("PT", ["gorria", "gorria"])):
        make_answers(out / name, [], truths)
        (out / "evaluation").mkdir(exist_ok=True)
        (out / name / "evaluation").rename(out / "evaluation" / name)
        (out / name).rmdir()


def test_tasks_have_losses_and_shares_beside_their_targets(tmp_path: Path):
    changes = [("data.streams.captions.task", "ep"), ("data.streams.words.task", "ep")]
    run = make_run(tmp_path / "run", 20, None, *changes)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    more = {"loss/task/ep": 1.5, "share_records/task/ep": 1.0, "total_records/task/ep": 7.0}
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(json.loads(line) | more) + "\n" for line in lines)
    )
    stage = read_stage(run, loading.load(Config, run / "config.yaml"), None)
    assert [(of.name, of.target, of.records, of.count) for of in stage.tasks] == [
        ("ep", pytest.approx(1.0), 1.0, 7)
    ]
    page = stage_sections.losses([stage]) + stage_sections.shares([stage])
    assert "training by task" in page and "<th>task" in page.replace(" scope=col", "")


def test_variants_of_a_tree_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    out.mkdir()
    (out / "IT").mkdir()
    (out / "PT").mkdir()
    make_tree(out)
    assert main(["report", str(out)]) == 0
    assert "report: LONG: stage long is not finished yet\n" in capsys.readouterr().out
    text = (out / "report.html").read_text(encoding="utf-8")
    text = text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    for words in (
        "in 3 stages: mlp, pt, it; 2 models, 2 of them evaluated.",
        "<h2>Variants</h2>",
        "mlp → it",
        "mlp → pt",
        "The answer is that of PT; those of the others are below it.",
        "50.0 %",
        "100.0 %",
        "<details><summary>IT</summary>",
        "<span class=soft>IT:</span> <bdi dir=auto>gorria</bdi> ✓",
        "2e-05, eyes 2e-06, cosine",
    ):
        assert words in text, words


def test_pictures_are_those_that_the_model_gets(tmp_path: Path):
    run = make_run(tmp_path / "run")
    files = make_pictures(tmp_path / "images")
    make_answers(run, list(files.values()), ["gorria"] * 3)
    scores, notes = answers.read_scores(run / "evaluation", config_of(run), {})
    assert scores is not None and notes == []
    clear, tall, turned = (np.asarray(answer.pictures[0]) for answer in scores.answers)
    for picture, path in zip((clear, tall, turned), files.values(), strict=True):
        np.testing.assert_array_equal(picture, decode.load_pixels(path, 28, "pad"))
    assert tuple(clear[0, 0]) == (255, 255, 255), "transparency is white"
    assert tall.shape == (28, 28, 3)
    assert turned[5, 14, 2] < 100 < turned[22, 14, 2], "yellow above blue: turned upright"
    page = pages.run(run).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "<script" not in page and "&lt;script&gt;" in page


def test_pictures_that_are_gone_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run")
    make_answers(run, [tmp_path / "gone.png"], ["gorria", "urdina"])
    text = pages.run(run).read_text(encoding="utf-8")
    line = f"2 pictures of answers cannot be read: {tmp_path / 'gone.png'}: no such image file"
    assert f"report: {line}\n" == capsys.readouterr().out.splitlines(keepends=True)[0]
    assert line in text


def test_scores_beside_the_majority_answer(tmp_path: Path):
    run = make_run(tmp_path / "run")
    make_answers(run, [], ["gorria", "Urdina.", "urdina", "berdea"])
    scores, _ = answers.read_scores(run / "evaluation", config_of(run), {"colour": "Which colour"})
    assert scores is not None
    (group,) = scores.groups
    assert (group.kind, group.language, group.right, group.count) == ("colour", "eu", 1, 4)
    assert (group.majority, group.common) == (2, "urdina")
    text = pages.run(run).read_text(encoding="utf-8").replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "most frequent answer 50.0 % <q>urdina</q>" in text


@pytest.mark.parametrize(
    ("key", "language", "kind"),
    [
        ("number-eu-000001", "eu", "number"),
        ("into-it-eu-000001", "eu", "into-it"),
        ("17", "eu", "question"),
        ("number-eu-1", "en", "question"),
    ],
)
def test_kind_of(key: str, language: str, kind: str):
    assert answers.kind_of({"id": key, "language": language}) == kind


def test_targets_follow_weights_measures_and_changes(tmp_path: Path):
    def targets(*changes: tuple[str, Any], steps: int = 10, streams: Any = None) -> tuple:
        run = make_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", 1, streams, *changes)
        return stream_targets(run, config_of(run).data, steps)

    by_stream, by_language = targets()
    assert by_stream == pytest.approx({"captions": 1 / 1.2, "words": 0.2 / 1.2})
    assert by_language == pytest.approx({"eu": 1 / 1.2, "en": 0.2 / 1.2})
    # by tokens, the weights are the shares of tokens; here of unlike examples
    assert targets(("data.weights", "tokens"))[0] == pytest.approx(by_stream)
    timed = [(f"data.streams.{name}.epochs", n) for name, n in (("captions", 1.0), ("words", 2.0))]
    assert targets(*timed, ("data.streams.words.weight", 1.0))[0] == {"captions": 0.5, "words": 0.5}
    changed = targets(("data.changes", {"5": {"words": 1.0}}))[0]
    assert changed["words"] == pytest.approx((0.2 / 1.2 + 0.5) / 2)
    assert targets(("data.changes", {"50": {"words": 1.0}}))[0] == pytest.approx(by_stream)
    both = STREAMS | {"words": STREAMS["words"] | {"tokens_per_word": {"eu": 1.0, "en": 2.0}}}
    assert targets(streams=both)[1] == {}, "a stream of two languages gives neither a target"
    assert targets(streams={"others": STREAMS["words"]}) == ({}, {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), r"metrics\.jsonl: no such file"),
        (lambda run: (run / "metrics.jsonl").write_text(""), r"metrics\.jsonl: is empty"),
        (lambda run: (run / "metrics.jsonl").write_text("x\n"), r"metrics\.jsonl:1: not JSON"),
        (lambda run: (run / "config.yaml").write_text("out: 3"), "missing; it has no default"),
        (lambda run: (run / "inputs.json").write_text("[]"), r"inputs\.json: expected an object"),
        (lambda run: (run / "inputs.json").write_text("{}"), r"inputs\.json: damaged .KeyError"),
        (lambda run: (run / "machine.json").write_text('{"a": 1}'), r"machine\.json: damaged"),
        (
            lambda run: (run / "data.json").write_text('{"streams": {"captions": 1, "words": {}}}'),
            r"data\.json: damaged",
        ),
    ],
)
def test_what_cannot_be_reported_is_refused(tmp_path: Path, capsys, spoil, message: str):
    run = make_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(ConfigError, match=message):
        pages.run(run)
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (run / "report.html").exists()


def test_folders_that_hold_no_run_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        pages.run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"neither a run .* nor a recipe's folder"):
        pages.run(tmp_path)
    make_run(tmp_path / "out" / "align", steps=0)
    with pytest.raises(ConfigError, match=r"align/metrics\.jsonl: no steps to report yet"):
        pages.run(tmp_path / "out")


def test_damaged_answers_are_named(tmp_path: Path):
    run = make_run(tmp_path / "run")
    make_answers(run, [], ["gorria"])
    path = run / "evaluation" / "answers.jsonl"
    path.write_text(path.read_text() + '{"id": "2"}\n')
    with pytest.raises(
        ConfigError, match=r"answers\.jsonl:2: not a line of answers .language, images, "
    ):
        pages.run(run)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"answers\.jsonl: is empty"):
        pages.run(run)


def test_a_damaged_summary_is_named(tmp_path: Path):
    make_run(tmp_path / "align")
    (tmp_path / "summary.json").write_text('{"stages": [{"run": "align"}]}')
    with pytest.raises(ConfigError, match=r"summary\.json: damaged .KeyError"):
        pages.run(tmp_path)
