"""Folders with a SentencePiece vocabulary answer as in transformers, are joined, trained, exported.

The references are those of `tests.support.vicuna_checkpoints`.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation.answer import generate
from mllm_jax.generation.engine import Answerer
from mllm_jax.training.loop import train
from tests.conftest import ROOT
from tests.conversion.test_conversions import hub_names, same, tensors
from tests.support import vocabulary
from tests.support.once import once
from tests.test_parity import Case, our_logits

LLAVA = ("llava_first", "llava_vicuna")
EVERYTHING = {"all": {"match": ".*"}}
CONNECTOR = {
    "connector": {"match": "connector/.*"},
    "others": {"match": "(vision|language)/.*", "train": False},
}
QUESTION = "Zein kolore daude irudian?"


@pytest.fixture(scope="session")
def references(tmp_path_factory) -> Path:
    vocabulary.model_file()
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch to make the reference checkpoints (see pyproject.toml, test)")

    def make(out: Path) -> None:
        command = [sys.executable, "-m", "tests.support.vicuna_checkpoints", str(out)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        if process.returncode != 0:
            pytest.fail(f"vicuna_checkpoints failed:\n{process.stderr[-2000:]}")

    return once(tmp_path_factory, "vicuna", make)


@pytest.mark.parametrize("name", LLAVA)
def test_equal_to_transformers(references, name):
    """The processor's tokens, logits, greedy tokens."""
    case = Case(references / name)
    np.testing.assert_allclose(our_logits(case), case.expected["logits"], atol=2e-4, rtol=0)
    answer = generate(case.folder, case.prompt, case.pictures, max_new_tokens=12, end_ids=())
    assert answer.prompt_tokens == case.expected["input_ids"][0].tolist()
    assert answer.tokens == case.greedy


@pytest.mark.parametrize("name", LLAVA)
def test_round_trip_is_bit_identical(references, name, tmp_path):
    source = references / name
    conversions.from_hf(source, tmp_path / "model")
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    same(hub_names(tensors(source)), tensors(tmp_path / "hf"))
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (source / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()


def train_stage(data: Path, out: Path, chat_format: str, weights: Path, parts: dict) -> None:
    """Two steps on the pictures with their Basque names."""
    stream = {
        "path": str(data / "eu.json"),
        "images": str(data / "images"),
        "language": "eu",
        "format": chat_format,
    }
    tree = {
        "model": loading.to_dict(open_model(weights).config.model),
        "init": {"weights": str(weights)},
        "data": {
            "streams": {"eu": stream},
            "languages": ["eu"],
            "length": 128,
            "image_slots": 2,
            "rows": 2,
            "window": 16,
            "threads": 1,
        },
        "optimizer": {"parts": parts, "learning_rate": 1e-3},
        "compute": {"compute": "float32", "remat": "none", "loss_chunk": 64},
        "train": {"steps": 2, "save_every": 2},
        "mesh": {"data": 1, "fsdp": 1},
        "out": str(out),
    }
    train(loading.build(Config, tree), devices=jax.devices()[:1])


@pytest.mark.slow
def test_backbones_are_joined_trained_and_exported(references, data, tmp_path, capsys):
    """A Vicuna as published, with tokenizer.model alone; captions, then questions."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    start = tmp_path / "start"
    conversions.join(
        start, vision=references / LLAVA[0], language=references / "vicuna", connector="mlp"
    )
    assert "chat template: vicuna_v1, since" in capsys.readouterr().out
    model = open_model(start).config.model
    assert model.language is not None
    assert (model.image_token, model.language.vocab) == (32000, 32064)
    train_stage(data, tmp_path / "align", "plain", start, CONNECTOR)
    train_stage(data, tmp_path / "instruct", "vicuna_v1", tmp_path / "align", EVERYTHING)
    hf = tmp_path / "hf"
    conversions.to_hf(tmp_path / "instruct", hf)
    assert (hf / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATES["vicuna_v1"]
    assert json.loads((hf / "generation_config.json").read_text())["eos_token_id"] in (2, [2])

    picture = data / "images" / "0.png"
    processor = transformers.AutoProcessor.from_pretrained(hf)
    stock, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        hf, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith(f"USER: <image>\n{QUESTION} ASSISTANT:")
    inputs = processor(text=text, images=[Image.open(picture)], return_tensors="pt")
    size = inputs["input_ids"].shape[1]
    with torch.no_grad():
        tokens = stock.generate(**inputs, max_new_tokens=6, do_sample=False)[0, size:].tolist()
    answer = generate(hf, QUESTION, [picture], max_new_tokens=6)
    assert answer.prompt_tokens == inputs["input_ids"][0].tolist()
    assert answer.tokens == tokens
    assert Answerer(hf).ends == (2,)


@pytest.mark.slow
def test_llava_1_5_is_trained_further(references, data, tmp_path):
    """Its own template ends no answer; the run's model has that of the format it was trained in."""
    train_stage(data, tmp_path / "run", "vicuna_v1", references / "llava_vicuna", EVERYTHING)
    opened = Answerer(tmp_path / "run")
    assert opened.template == TEMPLATES["vicuna_v1"]
    opened.chat.check_answers()
    ids = opened.prompt([user_turn(QUESTION, 1)], 4).tokens.tolist()
    assert ids.count(32000) == opened.config.patches


def test_a_tokenizer_model_that_cannot_be_read_is_one_line(references, tmp_path):
    source = references / "vicuna"
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "tokenizer.model").write_bytes(b"\x0a\x07not one")
    with pytest.raises(ConfigError, match=r"tokenizer\.model: not a SentencePiece model"):
        conversions.join(tmp_path / "out", vision=references / LLAVA[0], language=broken)
    assert not (tmp_path / "out").exists()
