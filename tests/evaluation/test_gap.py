"""`mllm-jax gap`: vectors are the model's own, files hold the numbers, the page fits."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.__main__ import main
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.heldout import images_beside
from mllm_jax.evaluation import gap
from mllm_jax.evaluation.questions import load_records
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm
from tests.support import browser, tiny


def record(number: int, language: str, text: str, image: bool = True) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"<image>\n{text} {number}?" if image else text},
        {"from": "gpt", "value": text * (number % 3 + 1)},
    ]
    picture = {"image": f"{number}.png"} if image else {}
    return {"id": f"{language}{number}", "language": language, "conversations": turns} | picture


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures, asked about in two languages; two records have none."""
    folder = tmp_path_factory.mktemp("gap") / "data"
    tiny.make_data(folder)
    records = [record(n, "eu", "Zer kolore da") for n in range(9)]
    records += [record(n, "en", "Which colour") for n in range(8)]
    records += [record(n, "en", "Kaixo", image=False) for n in range(2)]
    (folder / "heldout.json").write_text(json.dumps(records), encoding="utf-8")
    return folder / "heldout.json"


@pytest.fixture(scope="module")
def run(trained_run: Path) -> Path:
    return trained_run


def test_vectors_are_means_of_what_the_language_model_reads(run: Path, data: Path):
    opened = Answerer(run)
    stream = StreamConfig(str(data), str(images_beside(data)))
    records = [r for r in load_records("gap", stream, ("eu", "en")) if r.images]
    sets = gap.vectors(opened, records, rows=4)
    assert [(name, len(of.images)) for name, of in sets.items()] == [("eu", 9), ("en", 8)]
    assert np.array_equal(sets["eu"].images[:8], sets["en"].images)
    (tiles,) = opened.pictures(records[3].images)
    embedded = mllm.image_embeddings(opened.model, opened.params, jnp.asarray(tiles.pixels)[None])
    expected = np.asarray(jnp.mean(embedded, (0, 1)))
    np.testing.assert_allclose(sets["eu"].images[3], expected, rtol=1e-5, atol=1e-6)
    text = "Zer kolore da 3?\nZer kolore da"
    ids = opened.tokenizer(text, add_special_tokens=False)["input_ids"]
    table = np.asarray(opened.params["language/embedding"], np.float64)
    np.testing.assert_allclose(sets["eu"].texts[3], table[ids].mean(0), rtol=1e-5, atol=1e-7)


def test_the_command_writes_numbers_tables_and_a_figure(
    run: Path, data: Path, tmp_path: Path, capsys: Any
):
    out, file = tmp_path / "out", tmp_path / "gap.json"
    words = ["gap", str(run), "--data", str(data), "--out", str(out), "--json", str(file)]
    assert main(words) == 0
    tree = json.loads(file.read_text())
    assert tree == json.loads((out / "gap.json").read_text())
    assert tree["left_out"] == 2
    assert [(name, of["count"]) for name, of in tree["languages"].items()] == [("eu", 9), ("en", 8)]
    (pair,) = tree["pairs"]
    assert (pair["a"], pair["b"], pair["count"]) == ("eu", "en", 8)
    printed = capsys.readouterr().out
    assert "| eu, images |" in printed
    assert "| eu, en " in printed
    assert (out / "gap.md").read_text() in printed
    page = (out / "gap.html").read_text()
    assert page.count('class="c') >= 6
    assert "Basque (eu)" in page
    if browser.CHROMIUM is not None:
        for width in (390, 1280):
            view = browser.show(out / "gap.html", tmp_path, width)
            assert view.scroll <= view.client


def test_bad_input_is_one_line(run: Path, data: Path, tmp_path: Path, capsys: Any):
    few = data.with_name("few.json")
    few.write_text(json.dumps([record(n, "eu", "Zer") for n in range(3)]), encoding="utf-8")
    (tmp_path / "x").touch()
    cases = {
        ("--data", "missing.json"): "no such file",
        ("--data", few): "3 records in eu have an image; at least 4 are needed",
        ("--data", data, "--out", tmp_path): "exists and is not empty",
        ("--data", data, "--images", tmp_path / "none"): "no such folder",
    }
    for words, message in cases.items():
        assert main(["gap", str(run), *map(str, words)]) == 2, words
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
