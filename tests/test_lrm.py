"""LRM-LLaVA's two stages at a small size, from aligned records to an export that others open."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax.commands.recipe import stages as recipe
from tests.support import lrm, ndino
from tests.support.lrm import STEPS, Record
from tests.test_ndino import LIMIT, logits, params

pytestmark = pytest.mark.slow
TATOEBA = {"eu": "eus", "it": "ita", "es": "spa"}


def check_weights(root: Path) -> None:
    """What is frozen is bit-identical, all else moved."""
    start, align, instruct = (
        params(root / name) for name in ("start", "out/align", "out/instruct")
    )
    for path in start:
        if path.endswith("layers/attention/k/bias"):  # softmax does not see it: no gradient
            continue
        moved = not np.array_equal(start[path], align[path])
        assert moved == path.startswith("connector/"), path
        moved = not np.array_equal(align[path], instruct[path])
        assert moved == (not path.startswith("vision/")), path


def check_metrics(root: Path) -> None:
    """Losses and tokens of tasks are those of their streams together."""
    for stage, tasks in lrm.STAGES.items():
        file = root / "out" / stage / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert [line["step"] for line in lines] == list(range(STEPS))
        last = lines[-1]
        totals = {task: last[f"total_trained/task/{task}"] for task in tasks}
        assert sum(totals.values()) == sum(line["trained_tokens"] for line in lines)
        for task, total in totals.items():
            assert total > 0 and any(np.isfinite(line.get(f"loss/task/{task}", np.nan))
                                     for line in lines)  # fmt: skip
            of_streams = [
                v for k, v in last.items() if k.startswith(f"total_trained/stream/{task}_")
            ]
            assert total == sum(of_streams)
        assert last["heldout/loss/task/mvqa"] == pytest.approx(last["heldout/loss"])
        for language in ("en", "eu"):
            assert last[f"total_trained/language/{language}"] > 0


def check_export(root: Path, picture: Path) -> None:
    """Stock transformers opens the export and computes the run's logits."""
    pytest.importorskip("torch")
    folder, seen = root / "out" / "hf", root / "seen.npz"
    script = Path(__file__).parent / "support" / "open_exports.py"
    words = [sys.executable, script, folder, "--prompt", "<image>\nzer forma dago irudian?",
             "--images", picture, "--out", seen]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, env=environment, check=True, timeout=LIMIT)
    theirs = dict(np.load(seen))
    assert theirs["hf/wrong"].tolist() == []
    ours = logits(root / "out" / "instruct", theirs["hf/ids"][0].astype(np.int32), picture)
    np.testing.assert_allclose(ours, theirs["hf/logits"], atol=2e-4, rtol=0)


def check_all(root: Path, captions: list[Record], questions: list[Record], images: Path) -> None:
    recipe.run(lrm.make_project(root, captions, questions, images), devices=jax.devices()[:1])
    check_weights(root)
    check_metrics(root)
    check_export(root, images / questions[0]["image"])
    assert "training by task" in (root / "out" / "report.html").read_text("utf-8")


def test_two_stages_and_an_export(tmp_path: Path):
    ndino.made_sources(tmp_path / "images")
    captions = [
        {"id": n, "image": f"{n}.png", "a": {"en": "Two colours.", "eu": "Bi kolore.",
                                             "it": "Due colori.", "es": "Dos colores."}}
        for n in range(24)
    ]  # fmt: skip
    answers = list(lrm.ANSWERS)
    questions = [
        lrm.aligned(str(n), f"{n}.png", list(lrm.QUESTIONS)[n % 2], answers[n % len(answers)])
        for n in range(24)
    ]
    check_all(tmp_path, captions, questions, tmp_path / "images")


@pytest.mark.realdata
def test_the_same_on_pictures_and_texts_of_others(shared: Path, tmp_path: Path, capsys):
    """easy-VQA's pictures and questions; sentences of Tatoeba, each in English and one more."""
    data = shared / "realdata"
    folder = data / "easy_vqa" / "train"
    asked = json.loads((folder / "questions.json").read_text("utf-8"))
    questions = [
        lrm.aligned(f"{n}", f"{image}.png", question, answer)
        for n, (question, answer, image) in enumerate(asked)
        if question in lrm.QUESTIONS
    ][:200]
    captions = []
    for code, name in TATOEBA.items():
        file = data / "text_tatoeba" / f"tatoeba.{name}-eng"
        own, english = (
            file.with_name(f"{file.name}.{of}").read_text("utf-8").splitlines()
            for of in (name, "eng")
        )
        captions += [
            {"id": f"{code}{n}", "image": f"{n}.png", "a": {"en": english[n], code: own[n]}}
            for n in range(80)
        ]
    check_all(tmp_path, captions, questions, folder / "images")
    report = json.loads((tmp_path / "data" / "align" / "tasks.json").read_text("utf-8"))
    rows = {row["language"]: row for row in report["tasks"]}
    assert rows["en"]["records"] == 240 and rows["eu"]["records"] == 80
    assert rows["eu"]["left_out"] == {"no question in eu": 160}
