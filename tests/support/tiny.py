"""A tiny stage on disk: pictures of two colours with their names, a tokenizer, a config."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.digits.tokenizer import make_tokenizer

COLOURS = {
    "gorria": ("red", (200, 30, 30)),
    "berdea": ("green", (30, 160, 60)),
    "urdina": ("blue", (40, 60, 200)),
    "beltza": ("black", (10, 10, 10)),
    "zuria": ("white", (245, 245, 245)),
    "horia": ("yellow", (240, 220, 40)),
}
QUESTION = {"eu": "Zein kolore daude irudian?", "en": "Which colours are in the picture?"}
VOCAB = 320
OF_THE_CLOCK = ("per_second", "seconds", "data_wait", "teraflops", "mfu")


def make_data(folder: Path) -> None:
    """24 pictures, 24 records in each language (one and two images), 12 of text only.

    Lengths are uneven.
    """
    (folder / "images").mkdir(parents=True)
    rng, names = np.random.default_rng(0), list(COLOURS)
    pairs = [tuple(rng.choice(names, 2)) for _ in range(24)]
    for i, (left, right) in enumerate(pairs):
        pixels = np.zeros((20, 24, 3), np.uint8)
        pixels[:, :12], pixels[:, 12:] = COLOURS[left][1], COLOURS[right][1]
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    for language in ("eu", "en"):
        records = []
        for i in range(len(pairs)):
            both = [i, (i + 1) % len(pairs)] if i % 5 == 0 else [i]
            names = [name for j in both for name in pairs[j]]
            words = " ".join(names if language == "eu" else [COLOURS[n][0] for n in names])
            question = "<image>\n" * len(both) + QUESTION[language]
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": words}]
            records.append(
                {
                    "id": f"{i}",
                    "image": [f"{j}.png" for j in both],
                    "conversations": turns,
                    "language": language,
                }
            )
        (folder / f"{language}.json").write_text(json.dumps(records), encoding="utf-8")
    lines = []
    for i, (a, b) in enumerate(pairs[:12]):
        asked = {"role": "user", "content": f"{a} eta {b}?"}
        answer = {"role": "assistant", "content": f"{a} {b} " * (i % 4 + 1)}
        lines.append(json.dumps({"id": f"t{i}", "messages": [asked, answer]}))
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = [*QUESTION.values(), *COLOURS, *(name for name, _ in COLOURS.values()), "eta"] * 3
    letters = [chr(c) for c in range(97, 123)]
    corpus += [c * 2 + d for c in letters for d in letters]  # enough pairs to learn from
    make_tokenizer(corpus, folder / "tokenizer", TEMPLATES["llama3"], VOCAB)


def tree(folder: Path, out: Path) -> dict[str, Any]:
    """The stage's YAML as a dict, for tests that change it."""
    images = str(folder / "images")
    return {
        "model": {
            "vision": {
                "image_size": 16, "patch_size": 8, "width": 16, "mlp": 32, "layers": 2, "heads": 2,
            },
            "connector": {"kind": "mlp"},
            "language": {
                "vocab": VOCAB, "width": 32, "mlp": 48, "layers": 2, "heads": 4, "kv_heads": 2,
                "head_dim": 8, "max_length": 512,
            },
            "image_token": VOCAB - 1,
        },
        "init": {"tokenizer": str(folder / "tokenizer")},
        "compute": {"compute": "float32", "remat": "none", "loss_chunk": 32},
        "data": {
            "streams": {
                "eu": {
                    "path": str(folder / "eu.json"), "images": images, "weight": 2.0,
                    "format": "llama3",
                },
                "en": {"path": str(folder / "en.json"), "images": images, "format": "llama3"},
                "text": {"path": str(folder / "text.jsonl"), "language": "eu", "format": "llama3"},
            },
            "languages": ["eu", "en"],
            "length": 96, "image_slots": 4, "rows": 8, "window": 32, "threads": 1, "prefetch": 2,
        },
        "optimizer": {
            "parts": {"all": {"match": ".*"}},
            "learning_rate": 3e-3, "warmup_ratio": 0.1, "floor": 0.1,
        },
        "train": {"steps": 12, "save_every": 4, "log_every": 100},
        "mesh": {"data": 1},
        "out": str(out),
        "seed": 3,
    }  # fmt: skip


def config(folder: Path, out: Path, **sections: dict[str, Any]) -> Config:
    """The stage as a Config; `sections` overwrite keys, e.g. train={"steps": 6}."""
    raw = tree(folder, out)
    for name, values in sections.items():
        raw[name] = {**raw.get(name, {}), **values} if isinstance(values, dict) else values
    return loading.build(Config, raw)


def numbers(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock: the same to the bit, or something moved."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {key: value for key, value in line.items() if not any(w in key for w in OF_THE_CLOCK)}
        for line in lines
    ]


def asked(questions: list[tuple[list[str], str, str]]) -> list[dict]:
    """LLaVA records of Basque questions: (images, question, true answer)."""
    return [
        {
            "id": f"r{n}",
            "language": "eu",
            **({"image": images} if images else {}),
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": truth},
            ],
        }
        for n, (images, question, truth) in enumerate(questions)
    ]
