"""LLaVA-NDiNO's tree from the first weights to six exports, at a small size, killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mllm_jax.batch import TEXT
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.config import loading
from mllm_jax.config.stage import ComputeConfig, Config
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.images import slots_of
from mllm_jax.models import mllm
from tests.support import commands, ndino
from tests.support.ndino import STEPS, Source, record

pytestmark = pytest.mark.slow

STARTS = {"mlp": None, "pt": "mlp", "it": "mlp", "pt_it": "pt", "long": "mlp", "pt_long": "pt",
          "it_long": "it", "pt_it_long": "pt_it"}  # fmt: skip
VARIANTS = {"IT": "it", "PT+IT": "pt_it", "LONG-IT": "long", "PT+LONG-IT": "pt_long",
            "IT+LONG-IT": "it_long", "PT+IT+LONG-IT": "pt_it_long"}  # fmt: skip
NEWLINE = "connector/newline"
LIMIT = 900  # seconds


def run_killed(recipe: Path, stages: tuple[str, ...]) -> None:
    """Runs a recipe to its end; it is killed in each of `stages`, and started again."""
    log = recipe.parent / "log.txt"

    def start() -> Any:
        return commands.start(["recipe", str(recipe)], log, commands.ONE_DEVICE)

    end = time.monotonic() + LIMIT
    for stage in stages:
        process, saved = start(), recipe.parent / "out" / stage / "checkpoints" / "2"
        while not saved.is_dir():
            assert process.is_alive() and time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    process = start()
    process.join(end - time.monotonic())
    assert process.exitcode == 0, log.read_text()[-2000:]


def params(folder: Path) -> dict[str, np.ndarray]:
    """Path -> numbers of a model or run."""
    model = open_model(folder)
    leaves = model.leaves(conversions.abstract(model.config.model))
    return {path: leaf.read() for path, leaf in leaves.items()}


def check_stages(root: Path) -> None:
    """Every stage ran once, from the right weights; the frozen did not move, the trained did."""
    out = root / "out"
    weights = {name: params(out / name) for name in STARTS} | {"start": params(root / "start")}
    for name, start in STARTS.items():
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(STEPS)), name
        before, after = weights[start or "start"], weights[name]
        config = loading.load(Config, out / name / "config.yaml")
        new = {NEWLINE} if name in ("pt", "it", "long") else set()
        assert after.keys() - before.keys() == new and before.keys() <= after.keys(), name
        for path, numbers in before.items():
            moved = not np.array_equal(numbers, after[path])
            trained = path.startswith("connector/") if start is None else _used(path, config)
            if path.endswith("layers/attention/k/bias"):  # softmax does not see it: no gradient
                continue
            assert moved == trained, f"{name}: {path}"
        if start is not None:
            check_rates(before, after, name)


def _used(path: str, config: Config) -> bool:
    """Whether the forward pass reads any of a parameter; the tower's post-norm is behind it."""
    return not path.startswith("vision/post_norm/")


def check_rates(before: dict[str, np.ndarray], after: dict[str, np.ndarray], name: str) -> None:
    """The tower learns at a fifth of the rate, and its last layer not at all.

    AdamW's steps are at most about the learning rate, however large the gradients are.
    """
    deltas = {path: np.abs(after[path] - numbers) for path, numbers in before.items()}
    layers = [x for path, x in deltas.items() if path.startswith("vision/layers/")]
    assert all(x[-1].max() == 0 for x in layers), f"{name}: the last layer has no gradient"
    largest = {
        module: max(x.max() for path, x in deltas.items() if path.startswith(module))
        for module in ("vision", "language")
    }
    assert 0.1 < largest["vision"] / largest["language"] < 0.4, (name, largest)


def check_exports(root: Path, picture: Path, prompt: str) -> None:
    """Stock transformers opens the six exports and computes what we compute from the runs."""
    pytest.importorskip("torch")
    out, seen = root / "out", root / "seen.npz"
    script = Path(__file__).parent / "support" / "open_exports.py"
    folders = [out / "hf" / name for name in VARIANTS]
    words = [sys.executable, script, *folders, "--prompt", prompt, "--images", picture]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([*words, "--out", seen], env=environment, check=True, timeout=LIMIT)
    theirs = dict(np.load(seen))
    for name, stage in VARIANTS.items():
        assert theirs[f"{name}/wrong"].tolist() == [], name
        config = json.loads((out / "hf" / name / "config.json").read_text())
        assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
        ours = logits(out / stage, theirs[f"{name}/ids"][0].astype(np.int32), picture)
        np.testing.assert_allclose(ours, theirs[f"{name}/logits"], atol=2e-4, rtol=0, err_msg=name)
    several = [theirs[f"{name}/logits"] for name in VARIANTS]
    assert all(not np.array_equal(several[0], of) for of in several[1:]), "six models"


def logits(run: Path, tokens: np.ndarray, picture: Path) -> np.ndarray:
    """Ours of a run, for the tokens that transformers made of the prompt."""
    opened = Answerer(run, ComputeConfig(compute="float32", remat="none"))
    pictures, numbers = opened.pictures([picture]), opened.placeholders([picture])
    placeholders = np.full(len(tokens), TEXT, np.int32)
    # as many as transformers made, or NumPy refuses
    own = np.arange(opened.config.patches) if numbers is None else numbers[0]
    placeholders[tokens == opened.config.image_token] = own
    encoded = Encoded(tokens, np.zeros(len(tokens), np.float32), placeholders)
    batch = opened.batch([encoded], [pictures], rows=1, slots=slots_of(pictures))
    hidden = jax.jit(mllm.hidden, static_argnums=0)(opened.model, opened.params, batch.inputs)
    return np.asarray(mllm.logits(hidden, mllm.head(opened.params)))[:, : len(tokens)]


def check_results(root: Path) -> None:
    """Every variant has its evaluation and its export; the report has them all."""
    out = root / "out"
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in VARIANTS:
        scores = json.loads((out / "evaluation" / name / "scores.json").read_text())
        assert scores["languages"]["it"]["count"] > 0
        assert name in page
    assert "1e-05, vision 2e-06, cosine" in page
    assert "variant" in (root / "log.txt").read_text()


def test_six_models_from_eight_runs_killed_twice(tmp_path: Path):
    sources, heldout = ndino.made_sources(tmp_path / "images")
    recipe = ndino.make_project(tmp_path, sources, heldout)
    run_killed(recipe, ("pt", "it_long"))
    check_stages(tmp_path)
    check_results(tmp_path)
    check_exports(tmp_path, tmp_path / "images" / "2.png", "<image>\nChe colore c'è a sinistra?")


@pytest.mark.realdata
def test_the_same_on_pictures_and_texts_of_others(shared: Path, tmp_path: Path):
    """Emoji with their Italian names, Italian sentences, and the photographs of LLaVA records."""
    data = shared / "realdata"
    lines = (data / "emoji" / "captions.jsonl").read_text("utf-8").splitlines()
    emoji = [
        line
        for line in map(json.loads, lines)
        if (data / "emoji" / line["image"]).is_file() and {"en", "it"} <= line["names"].keys()
    ][:120]
    italian = (data / "text_tatoeba" / "tatoeba.ita-eng.ita").read_text("utf-8").splitlines()
    english = (data / "text_tatoeba" / "tatoeba.ita-eng.eng").read_text("utf-8").splitlines()
    asked = "Che cosa mostra l'immagine?"
    named = [
        record(f"e{n}", asked, line["names"]["it"].capitalize(), [line["image"]])
        for n, line in enumerate(emoji)
    ]
    translated = [record(f"t{n}", f"Traduci: {english[n]}", italian[n]) for n in range(0, 200, 5)]
    captions = [
        record(f"c{n}", "", line["names"]["en"], [line["image"]], "en")
        for n, line in enumerate(emoji)
    ]
    photos = json.loads((data / "llava_format" / "sample_data.json").read_text("utf-8"))
    long = [
        record(f"p{n}", asked, of["conversations"][1]["value"][:300], [of["image"]], "it")
        for n, of in enumerate(photos)
        if isinstance(of.get("image"), str) and (data / "llava_format" / of["image"]).is_file()
    ]
    sources = {
        "mlp": Source(captions, data / "emoji", "en"),
        "pt": Source(named, data / "emoji"),
        "it": Source(named + translated, data / "emoji"),
        "long": Source(long, data / "llava_format"),
    }
    recipe = ndino.make_project(tmp_path, sources, Source(named[:4], data / "emoji"))
    run_killed(recipe, ("mlp", "pt_it_long"))
    check_stages(tmp_path)
    check_results(tmp_path)
    check_exports(tmp_path, data / "llava_format" / long[0]["image"], f"<image>\n{asked}")
