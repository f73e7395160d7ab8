"""Latxa-Instruct: the numbers of its files, its worked examples, and the whole at a small size."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.batch import Example
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.recipe import stages as recipes
from mllm_jax.commands.sweep.runs import read_runs
from mllm_jax.common.patterns import matches
from mllm_jax.config import loading
from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.config.model import LanguageConfig, ModelConfig
from mllm_jax.config.stage import ComputeConfig, Config
from mllm_jax.config.sweep import SweepConfig
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.loader import Loader
from mllm_jax.data.mixture import packing
from mllm_jax.digits.tokenizer import CONTROL, make_tokenizer
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm
from mllm_jax.training import optimizer
from mllm_jax.training.loss import weighted_loss
from tests.support import latxa_instruct as small
from tests.support.tiktoken_file import convert_tiktoken

ROOT = Path(__file__).resolve().parents[1] / "configs"
FILES = ("latxa_instruct", "latxa_instruct_70b")


@pytest.fixture(scope="module", params=FILES)
def stage(request) -> Config:
    return loading.load(Config, ROOT / request.param / "instruct.yaml")


# ------------------------------------------------------------------------------- published numbers


def test_the_published_numbers(stage):
    adamw, data, train = stage.optimizer, stage.data, stage.train
    rates = (adamw.learning_rate, adamw.schedule, adamw.floor, adamw.warmup_ratio)
    assert rates == (1e-5, "cosine", 0.33, 0.1)
    assert (adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert (adamw.clip_norm, adamw.neftune_alpha) == (1.0, 5.0)
    assert (data.length, data.pack, train.epochs, stage.seed) == (8192, True, 4, 33)
    assert data.rows == (512 if "70b" in stage.out else 256)
    assert all(stream.epochs == 1 for stream in data.streams.values()), "natural proportions"
    documents = [stream for stream in data.streams.values() if stream.is_text]
    talks = [stream for stream in data.streams.values() if not stream.is_text]
    assert len(documents) == 7 and len(talks) == (1 if "70b" in stage.out else 2)
    assert all(stream.train_end_of_turn and stream.format == "llama31" for stream in talks)
    assert stage.model.vision is None and data.image_slots == 0
    assert train.evaluate is not None and train.evaluate.records == 1000


def test_rates_of_1000_steps(stage):
    """Axolotl's: linear over the first tenth, then (1 - 0.33) (1 + cos(pi t)) / 2 + 0.33."""
    rate = optimizer.make_schedule(stage.optimizer, 1000, stage.optimizer.learning_rate)
    expected = {0: 0, 1: 1e-7, 50: 5e-6, 100: 1e-5, 325: 9.01881e-6, 550: 6.65e-6,
                775: 4.28119e-6, 1000: 3.3e-6}  # fmt: skip
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def test_what_decays_is_what_the_hugging_face_trainer_decays(stage):
    """All but biases and norms: the token table and the output layer too."""
    paths = mllm.abstract_params(mllm.build(stage.model, stage.compute))
    still = {p for p in paths if matches(stage.optimizer.no_decay, p, "optimizer.no_decay")}
    assert still == {
        "language/layers/attention_norm/scale",
        "language/layers/mlp_norm/scale",
        "language/norm/scale",
    }
    assert {"language/embedding", "language/head/kernel"} <= paths.keys() - still


def test_the_17_combinations_are_what_their_names_say():
    """exp_B_CEI: backbone, corpus, Basque and English instructions; 70B is a recipe of its own."""
    sweep = loading.load(SweepConfig, ROOT / "latxa_instruct" / "sweep.yaml")
    config = loading.load(Config, ROOT / "latxa_instruct" / "instruct.yaml")
    corpus = {name for name, stream in config.data.streams.items() if stream.is_text}
    weights = ("base_en", "base_eu", "inst_en")
    runs = {run.name: run for run in read_runs(sweep)}
    trained = {name for name, run in runs.items() if run.model is None}
    assert len(trained) == 17 and len(runs) == 3 * 2**3
    for name, run in runs.items():
        _, backbone, (with_corpus, basque, english) = name.split("_")
        if name not in trained:
            continue
        removed = {key for key, value in run.overrides.items() if value is None}
        expected = set(corpus) if with_corpus == "0" else set()
        expected |= {"magpie_eu"} if basque == "0" else set()
        expected |= {"magpie_en"} if english == "0" else set()
        assert removed == {f"instruct.data.streams.{stream}" for stream in expected}, name
        folder = f"models/latxa_instruct/{weights[int(backbone)]}"
        assert run.overrides["instruct.init.weights"] == folder
        seed = {"instruct.seed": 42} if name == "exp_2_010" else {}
        assert run.overrides.items() >= seed.items()
        assert len(run.overrides) == len(removed) + 1 + len(seed)
    aliases = {name.removeprefix("exp_") for name in runs.keys() - trained}
    assert aliases == {"0_000", "0_001", "0_100", "1_000", "1_100", "2_000", "2_001"}


# --------------------------------------------------------------------------------- worked examples

DOCUMENT = "abcdefgh"  # B a b c d e f g h E: ten tokens


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Any:
    """A tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("letters")
    make_tokenizer(["a"], folder, TEMPLATES["llama31"], 256 + len(CONTROL))
    return load_tokenizer(folder)


def pieces(letters: Any, folder: Path, length: int) -> list[Example]:
    """The document as a stream has it in rows of this length."""
    path = folder / "documents.jsonl"
    path.write_text(json.dumps({"text": DOCUMENT}) + "\n")
    model = ModelConfig(None, None, LanguageConfig(vocab=len(letters)))
    data = DataConfig(
        {"d": StreamConfig(str(path), language="eu", layout="text", epochs=1.0)},
        ("eu",),
        length=length,
        image_slots=0,
    )
    (stream,) = open_streams(Mixture(data, model, letters))
    return [stream[n] for n in range(len(stream))]


def spelt(letters: Any, tokens: np.ndarray) -> str:
    names = {"<|begin_of_text|>": "B", "<|end_of_text|>": "E"}
    return " ".join(
        names.get(x, x) for x in map(str, letters.convert_ids_to_tokens(tokens.tolist()))
    )


def test_a_document_in_rows_of_8(letters, tmp_path):
    """Axolotl cuts `B a b c d e f g | h E` and predicts h across the cut; ours repeats g."""
    first, second = pieces(letters, tmp_path, 8)
    assert spelt(letters, first.tokens) == "B a b c d e f g"
    assert spelt(letters, second.tokens) == "g h E"
    assert first.weights.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert second.weights.tolist() == [0, 1, 1]
    assert first.weights.sum() + second.weights.sum() == 9, "every token but B once"


CHAT = Example(
    np.array([3, 5, 6, 7, 4], np.int32),  # B u u a and the end of the turn
    np.array([0, 0, 0, 1, 1], np.float32),
    np.full(5, -1, np.int32),
    (),
    1,
    0,
    "c/1",
)


def test_a_document_and_a_conversation_in_a_row_of_16(letters, tmp_path):
    first, second = pieces(letters, tmp_path, 8)
    row = packing.assemble([first, CHAT], [], 16, 0, 1, 1)
    assert row.segments.tolist() == [1] * 8 + [2] * 5 + [0] * 3
    assert row.positions.tolist() == [*range(8), *range(5), 0, 0, 0]
    trained = row.targets[row.weights > 0]
    assert spelt(letters, trained[:7]) == "a b c d e f g" and trained[7:].tolist() == [7, 4]
    assert row.weights.tolist() == [1] * 7 + [0] * 3 + [1, 1] + [0] * 4
    other = packing.assemble([second], [], 16, 0, 1, 1)
    batch = packing.stack([row, other])
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.standard_normal((2, 16, 8)), jnp.float32)
    head = jnp.asarray(random.standard_normal((len(letters), 8)), jnp.float32)
    targets, weights = jnp.asarray(batch.targets), jnp.asarray(batch.weights)
    total, losses = weighted_loss(hidden, head, targets, weights, 8)
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nll = -np.take_along_axis(logp, np.asarray(targets)[..., None], axis=-1)[..., 0]
    assert batch.weights[0].sum() == 9
    one = (nll[0] * batch.weights[0]).sum()
    np.testing.assert_allclose((losses[0] * batch.weights[0]).sum() / 9, one / 9, rtol=1e-5)
    # the mean over the tokens of the step, not of the rows' means
    whole = (one + (nll[1] * batch.weights[1]).sum()) / 11
    np.testing.assert_allclose(float(total) / batch.weights.sum(), whole, rtol=1e-5)
    assert abs(whole - (one / 9 + (nll[1] * batch.weights[1]).sum() / 2) / 2) > 1e-2


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return small.make_project(tmp_path_factory.mktemp("latxa"), *small.made())


def test_every_record_comes_exactly_four_times(project):
    """Natural proportions, every pass once; the last batch is filled up with empty rows."""
    config = loading.load(Config, project.parent / "instruct.yaml")
    tokenizer = load_tokenizer(project.parent / "llama")
    loader = Loader(config.data, config.model, tokenizer, config.seed)
    assert config.train.epochs == 4
    steps, counts = loader.steps(config.train.epochs), Counter[str]()
    tokens: Counter[str] = Counter()
    for batch in loader.iterate(0, steps):
        counts.update(batch.records)
        trained = batch.batch.targets[batch.batch.weights > 0]
        tokens.update(tokenizer.convert_ids_to_tokens(trained.tolist()))
    names = {"egunkaria": 20, "wikipedia": 12, "magpie_eu": 9, "magpie_en": 13}
    whole = {key for key in counts if "#" not in key}
    assert Counter(key.split("/")[0] for key in whole) == names
    assert len(counts) > len(whole), "a document is longer than a row"
    assert set(counts.values()) == {4}
    assert (tokens["<|end_of_text|>"], tokens["<|eot_id|>"]) == (4 * 32, 4 * 22)


# ------------------------------------------------------------------------------------- small, whole


def check(root: Path) -> None:
    """All of the language model moved, the held-out loss was measured, the export is the run."""
    out = root / "out"
    before, after = (numbers(path) for path in (root / "llama", out / "instruct"))
    assert before.keys() == after.keys()
    assert all(not np.array_equal(x, after[path]) for path, x in before.items())
    lines = [
        json.loads(line)
        for line in (out / "instruct" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    held = [line["heldout/loss"] for line in lines if "heldout/loss" in line]
    assert len(held) > 2 and held[-1] < held[0]
    rates = [line["learning_rate/language"] for line in lines]
    assert rates[0] == 0 and max(rates) == pytest.approx(1e-3)
    assert min(rates[len(rates) // 2 :]) > 0.33e-3
    scores = json.loads((out / "evaluation" / "scores.json").read_text("utf-8"))
    assert scores["languages"].keys() == {"eu", "en"}
    assert "NEFTune" in (out / "report.html").read_text("utf-8")
    check_export(out)


def numbers(folder: Path) -> dict[str, np.ndarray]:
    model = open_model(folder)
    leaves = model.leaves(conversions.abstract(model.config.model))
    return {path: leaf.read() for path, leaf in leaves.items()}


def check_export(out: Path) -> None:
    """Stock transformers finds every tensor of LlamaForCausalLM and computes the run's logits."""
    pytest.importorskip("torch")
    script = Path(__file__).parent / "support" / "open_exports.py"
    config = json.loads((out / "hf" / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    words = [sys.executable, script, out / "hf", "--prompt", "etxe mendi?", "--images", "none"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([*words, "--out", out / "seen.npz"], env=environment, check=True, timeout=600)
    theirs = dict(np.load(out / "seen.npz"))
    assert theirs["hf/wrong"].tolist() == []
    tokens = theirs["hf/ids"].astype(np.int32)
    opened = Answerer(out / "instruct", ComputeConfig(compute="float32", remat="none"))
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    pixels = np.zeros((1, 0, 1, 1, 3), np.float32)
    ones = np.ones_like(tokens)
    inputs = mllm.ModelInputs(tokens, ones, places, -ones, pixels)
    hidden = jax.jit(mllm.hidden, static_argnums=0)(opened.model, opened.params, inputs)
    ours = mllm.logits(hidden, mllm.head(opened.params))
    np.testing.assert_allclose(ours, theirs["hf/logits"], atol=2e-4, rtol=0)


def run(recipe: Path) -> None:
    """The recipe in this process; the rate is one at which so few steps show."""
    rate = ["--optimizer.learning_rate", "1e-3"]
    recipes.run(recipe, devices=jax.devices()[:1], overrides=rate)


@pytest.mark.slow
def test_from_llama_to_llama(tmp_path):
    recipe = small.make_project(tmp_path, *small.made())
    run(recipe)
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.realdata
def test_the_same_on_texts_of_others(shared: Path, tmp_path: Path):
    """Sentences of Tatoeba as documents and as instructions, in Basque and English, by Llama 3's
    tokenizer.
    """
    tokenizer = tmp_path / "tokenizer"
    file = shared / "realdata" / "tokenizer" / "tokenizer_llama3.tiktoken"
    convert_tiktoken(file).save_pretrained(tokenizer)
    folder = shared / "realdata" / "text_tatoeba"
    basque, english = (
        (folder / f"tatoeba.eus-eng.{code}").read_text("utf-8").splitlines()
        for code in ("eus", "eng")
    )
    documents = {
        "wikipedia": [" ".join(basque[n : n + 12]) for n in range(0, 120, 12)],
        "egunkaria": basque[600:610],
    }

    def talks(first: int, last: int, asked: str, of: list[str], to: list[str]) -> list[Any]:
        return [
            small.chat(f"{asked[:2]}{n}", f"{asked} {of[n]}", to[n]) for n in range(first, last)
        ]

    chats = {
        "magpie_eu": talks(700, 708, "Itzuli:", english, basque),
        "magpie_en": talks(780, 788, "Translate:", basque, english),
        "aya_eu": talks(860, 866, "Itzuli:", english, basque),
        "magpie_ultra_en": talks(880, 886, "Translate:", basque, english),
    }
    recipe = small.make_project(tmp_path, documents, chats, tokenizer)
    run(recipe)
    check(tmp_path)
