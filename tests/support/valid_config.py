"""A valid stage as a tree, for tests that change one place of it."""

import copy
from pathlib import Path
from typing import Any

import yaml

TREE: dict[str, Any] = {
    "model": {
        "vision": {
            "image_size": 28,
            "patch_size": 7,
            "width": 48,
            "mlp": 96,
            "layers": 3,
            "heads": 4,
        },
        "connector": {"kind": "linear"},
        "language": {
            "vocab": 512,
            "width": 64,
            "mlp": 160,
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
        },
        "image_token": 400,
    },
    "init": {"weights": "runs/align/model", "fresh": "connector/.*"},
    "data": {
        "streams": {
            "captions": {"path": "captions.json", "images": "images", "language": "eu"},
            "words": {"path": "words.jsonl", "language": "en", "weight": 0.2},
        },
        "languages": ["eu", "en"],
        "length": 128,
        "rows": 8,
    },
    "optimizer": {
        "parts": {
            "frozen": {"match": "vision/.*", "train": False},
            "moving": {"match": "(connector|language)/.*", "learning_rate": 1e-3},
        }
    },
    "train": {"steps": 10},
}


def tree(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The valid config above with some places ("a.b.c", value) changed; the value ... deletes."""
    made = copy.deepcopy(TREE)
    for path, value in changes:
        *folders, last = path.split(".")
        place = made
        for key in folders:
            place = place.setdefault(key, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return made


def write(folder: Path, *changes: tuple[str, Any]) -> Path:
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(tree(*changes), allow_unicode=True), encoding="utf-8")
    return path
