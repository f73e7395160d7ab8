"""Real pictures with human names: a small model learns 1,500 emoji in Basque and English.

The whole way as a person goes it: LLaVA JSON, a recipe of two stages (captions first, then
questions in both languages, everything trained), evaluation of the answers in Basque.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.digits.tokenizer import make_tokenizer

COUNT, VOCAB = 1500, 1024
QUESTION = {"eu": "Zer?", "en": "What?"}
MODEL = {
    "vision": {"image_size": 32, "patch_size": 16, "width": 96, "mlp": 288, "layers": 1,
               "heads": 4, "feature_layer": -1},
    "connector": {"kind": "linear"},
    "language": {"vocab": VOCAB, "width": 128, "mlp": 384, "layers": 1, "heads": 4, "kv_heads": 2,
                 "head_dim": 32, "max_length": 512},
    "image_token": VOCAB - 1,
}  # fmt: skip


def stage(data: Path, pictures: Path, chat: str, slots: int, steps: int, rate: float) -> dict:
    """Rows of 256 tokens: about 20 captions of 12 tokens, or 10 conversations of 25."""
    return {
        "model": MODEL,
        "init": {"tokenizer": str(data / "tokenizer")},
        "data": {
            "streams": {
                language: {"path": str(data / f"{language}.json"), "images": str(pictures),
                           "format": chat, "weight": weight}
                for language, weight in (("eu", 0.7), ("en", 0.3))
            },
            "languages": ["eu", "en"], "length": 256, "image_slots": slots, "rows": 3,
        },
        "optimizer": {"parts": {"all": {"match": ".*"}}, "learning_rate": rate, "floor": 0.1,
                      "beta2": 0.95, "weight_decay": 0.0},
        "train": {"steps": steps, "save_every": steps, "log_every": 200},
        "compute": {"compute": "float32", "remat": "none", "attention": "blocks",
                    "loss_chunk": 256},
    }  # fmt: skip


def make_data(source: Path, data: Path) -> None:
    """The pictures as LLaVA JSON, a file per language, and a tokenizer learnt from their names."""
    lines = (source / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    emoji = [
        line for line in map(json.loads, lines) if (source / line["image"]).is_file()
        and QUESTION.keys() <= line["names"].keys()
    ][:COUNT]  # fmt: skip
    assert len({line["names"]["eu"] for line in emoji}) == COUNT, "each has a name of its own"
    data.mkdir()
    for language, question in QUESTION.items():
        records = [
            {"id": str(i), "image": Path(line["image"]).name, "language": language,
             "conversations": [{"from": "human", "value": f"<image>\n{question}"},
                               {"from": "gpt", "value": line["names"][language]}]}
            for i, line in enumerate(emoji)
        ]  # fmt: skip
        text = json.dumps(records, ensure_ascii=False)
        (data / f"{language}.json").write_text(text, encoding="utf-8")
    names = [line["names"][language] for line in emoji for language in QUESTION]
    make_tokenizer([*names, *QUESTION.values()], data / "tokenizer", TEMPLATES["llama3"], VOCAB)


@pytest.mark.slow
@pytest.mark.realdata
def test_the_pictures_get_their_basque_names(shared, tmp_path):
    """A model that reads only text can at best guess among all names: log(1,500) nats a caption."""
    source, data = shared / "realdata" / "emoji", tmp_path / "data"
    make_data(source, data)
    pictures = source / "images"
    files = {
        "captions": stage(data, pictures, "plain", slots=24, steps=1200, rate=3e-3),
        "questions": stage(data, pictures, "llama3", slots=10, steps=1600, rate=1e-3),
        "recipe": {
            "stages": ["captions.yaml", "questions.yaml"],
            "evaluate": {"data": str(data / "eu.json"), "images": str(pictures), "rows": 64},
            "out": str(tmp_path / "out"),
        },
    }
    for name, tree in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    words = [sys.executable, "-m", "mllm_jax", "recipe", str(tmp_path / "recipe.yaml")]
    # a process of its own, optimised as a person's: one device, all of the compiler's passes
    alone = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(words, env=alone, check=True)
    scores = json.loads((tmp_path / "out" / "evaluation" / "scores.json").read_text())
    basque = scores["languages"]["eu"]
    per_caption = basque["loss"] * basque["answer_tokens"] / basque["count"]
    assert basque["count"] == COUNT
    assert per_caption < 0.25 * math.log(COUNT), basque
    assert basque["exact_match"] > 0.75, basque
