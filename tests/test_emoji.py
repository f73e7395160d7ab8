"""Real pictures with human names: 1,500 emoji in two languages, learnt by a small model."""

import json
import math
from pathlib import Path

import jax
import pytest

from mllm_jax import config_file
from mllm_jax.config import Config
from mllm_jax.data.templates import TEMPLATES
from mllm_jax.digits.tokenizer import make_tokenizer
from mllm_jax.evaluate import evaluate
from mllm_jax.train import train

COUNT, VOCAB, STEPS = 1500, 1024, 900
QUESTION = {"eu": "Zer?", "en": "What?"}


def stage(data: Path, out: Path) -> Config:
    images = str(data / "images")
    streams = {
        language: {"path": str(data / f"{language}.json"), "images": images, "format": "llama3"}
        for language in QUESTION
    }
    return config_file.build(
        Config,
        {
            "model": {
                "vision": {"image_size": 48, "patch_size": 12, "width": 128, "mlp": 384,
                           "layers": 3, "heads": 4, "feature_layer": -1},
                "connector": {"kind": "linear"},
                "language": {"vocab": VOCAB, "width": 192, "mlp": 512, "layers": 3, "heads": 4,
                             "kv_heads": 2, "head_dim": 48, "max_length": 512},
                "image_token": VOCAB - 1,
            },
            "init": {"tokenizer": str(data / "tokenizer")},
            "compute": {"compute": "float32", "remat": "none", "loss_chunk": 256},
            "data": {"streams": streams, "languages": ["eu", "en"], "length": 256, "image_slots": 8,
                     "rows": 12, "window": 512, "threads": 2},
            "optimizer": {"parts": {"all": {"match": ".*"}}, "learning_rate": 2e-3, "floor": 0.05,
                          "beta2": 0.95},
            "train": {"steps": STEPS, "save_every": STEPS, "log_every": 50},
            "out": str(out),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def emoji(shared, tmp_path_factory) -> Path:
    """The pictures as LLaVA JSON, a file per language, with a tokenizer learnt from their names."""
    source, data = shared / "realdata" / "emoji", tmp_path_factory.mktemp("emoji")
    text = (source / "captions.jsonl").read_text(encoding="utf-8")
    lines = [
        line
        for line in map(json.loads, text.splitlines())
        if {"eu", "en"} <= line["names"].keys() and (source / line["image"]).is_file()
    ][:COUNT]
    assert len(lines) == COUNT
    (data / "images").symlink_to(source / "images")
    for language, question in QUESTION.items():
        records = [
            {"id": str(i), "image": Path(line["image"]).name, "language": language,
             "conversations": [{"from": "human", "value": f"<image>\n{question}"},
                               {"from": "gpt", "value": line["names"][language]}]}
            for i, line in enumerate(lines)
        ]  # fmt: skip
        made = json.dumps(records, ensure_ascii=False)
        (data / f"{language}.json").write_text(made, encoding="utf-8")
    names = [name for line in lines for name in (line["names"]["eu"], line["names"]["en"])]
    make_tokenizer([*names, *QUESTION.values()], data / "tokenizer", TEMPLATES["llama3"], VOCAB)
    return data


@pytest.mark.slow
@pytest.mark.realdata
def test_the_pictures_get_their_basque_names(emoji, tmp_path):
    """Who reads the text alone can only guess among all names: log(1,500) nats a caption."""
    run = train(stage(emoji, tmp_path / "run"), devices=jax.devices()[:1])
    out = tmp_path / "evaluation"
    result = evaluate(run, emoji / "eu.json", out, emoji / "images", rows=64)
    scores = result["languages"]["eu"]
    per_caption = scores["loss"] * scores["answer_tokens"] / scores["count"]
    assert scores["count"] == COUNT
    assert per_caption < 0.25 * math.log(COUNT), scores
    assert scores["exact_match"] > 0.75, scores
